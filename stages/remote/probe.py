"""Whether a run may put at a URL what it makes: asked before the work, with an object that is there for a moment. A web server is
refused by its URL.
"""

import secrets
from contextlib import suppress

from cache.errors import ReskdError, StoreError
from stages.remote.url_path import Location, UrlPath

PROBE = ".probe-"  # how the names of these objects begin


def check_not_on_web_server(output: Location) -> None:
    """Raises ReskdError for http(s): a web server is only read."""
    if isinstance(output, UrlPath) and output.on_web_server:
        raise ReskdError(f"{output}: a web server can only be read; give s3://, gs://, az:// or a path of this machine")


def check_puts(output: UrlPath) -> None:
    """Raises StoreError if nothing can be put where `output` is to lie."""
    probe = output.with_name(_new_name())
    try:
        probe.write_bytes(b"")
    except StoreError as error:
        raise StoreError(f"{output} can't be written: {error}") from error
    with suppress(StoreError):  # who may put may be one who may not delete
        probe.unlink()


def check_conditional_puts(url: UrlPath) -> None:
    """Raises StoreError where a store has no conditional puts: two writers would destroy each other's work there."""
    probe = url / _new_name()
    try:
        probe.write_new(b"")
        probe.write_new(b"")
    except FileExistsError:  # at the first put, too, if the answer to it was lost
        return
    finally:
        with suppress(StoreError):
            probe.unlink()
    raise StoreError(f"{url}: its store ignores the condition of a put (If-None-Match), so nobody can know whether another "
                     "process writes there, too: write into a local folder, and copy it there")  # fmt: skip


def _new_name() -> str:
    return f"{PROBE}{secrets.token_hex(8)}"
