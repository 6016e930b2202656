"""Requests to object stores and web servers: the connections, their time, and what is said of an error.

No other file imports obstore. It reads endpoints and credentials in the environment.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

from cache.errors import ReskdError, StoreError

SECONDS = "RESKD_STORE_SECONDS"  # variable of the environment: how long one request, and all its retries, may take
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), AWS_REGION, and AWS_ENDPOINT_URL of other stores",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
}


class Changed(StoreError):
    """An object isn't the one that was read: another writer has replaced it."""


_used_in: list[int] = []  # the process that has connections


def may_fork() -> bool:
    """Whether this process may be forked. A fork of a process with connections would wait for ever at its first request."""
    return not _used_in


def request(root: str, url: str, verb: str, work: Callable[[Any, Any], Any], size: int = 0) -> Any:
    """The answer of `work`, which gets obstore and the connections to the bucket `root`. `verb` and `url`: for messages.

    `size`: bytes that it sends in one piece: a second more for each MiB.
    """
    obstore = _obstore()
    try:
        return work(obstore, connections(root, _seconds() + 60 * -(-(size >> 20) // 60)))
    except Exception as error:  # obstore has its own types, and raises Python's for some
        _fail(url, verb, error, obstore)


def _fail(url: str, verb: str, error: Exception, obstore: Any) -> NoReturn:
    said, kinds = str(error), obstore.exceptions
    if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in said:
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from None
    if isinstance(error, kinds.AlreadyExistsError):
        raise FileExistsError(errno.EEXIST, "there is such an object", url) from None
    if isinstance(error, kinds.PreconditionError):
        raise Changed(f"{url}: another writer has replaced it. Let one of them end, and run again") from None
    if isinstance(error, ReskdError):
        raise error
    status = re.search(r"status code: (\d{3}[^:\n]*)", said)
    reason = " ".join(status[1].split()) if status else said.partition("\n")[0][:200]
    scheme = url.partition("://")[0]
    if isinstance(error, (kinds.PermissionDeniedError, kinds.UnauthenticatedError)) or "169.254.169.254" in said:
        remedy = f"check the credentials in the environment: {CREDENTIALS.get(scheme, 'a web server needs none')}"
    elif "NoSuchBucket" in said:
        reason, remedy = "no such bucket", "make it, or correct its name"
    elif isinstance(error, kinds.NotSupportedError) or (status and status[1].startswith(("501", "405"))):
        remedy = "this store can't do that (a web server is only read, never listed, and must answer ranges of bytes for a " \
                 "data set; several writers need conditional puts)"  # fmt: skip
    else:
        remedy = f"see whether the store can be reached, or allow it more than {_seconds():g} s in {SECONDS}; what is " \
                 "finished stays"  # fmt: skip
    raise StoreError(f"{url}: {verb} failed ({reason}): {remedy}") from error


def _seconds() -> float:
    return float(os.environ.get(SECONDS, "60"))


def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise ReskdError("URLs need the extra `remote`: uv run --extra remote pipeline.py …") from error
    return obstore


@functools.cache
def connections(root: str, seconds: float) -> Any:
    """The connections of this process to a bucket, for requests that take `seconds` at most."""
    import obstore.store as stores

    _used_in[:] = _used_in or [os.getpid()]
    assert _used_in == [os.getpid()], "a fork of a process with connections: see `may_fork`"
    limit = timedelta(seconds=seconds)
    plain = root.startswith("http://") or any(
        os.environ.get(name, "").startswith("http://")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    )
    client = {"timeout": limit, "connect_timeout": min(limit, timedelta(seconds=10)), "allow_http": plain}
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2}
    retries = {"max_retries": 10, "retry_timeout": limit, "backoff": backoff}
    if root.startswith("http"):
        return stores.HTTPStore.from_url(root, client_options=client, retry_config=retries)
    extra: dict[str, Any] = {}
    if root.startswith("s3://") and os.environ.get("AWS_PROFILE"):
        extra["credential_provider"] = _profile()
    return stores.from_url(root, client_options=client, retry_config=retries, **extra)


def _profile() -> Any:
    """The credentials of the profile AWS_PROFILE, which boto3 reads in AWS's own files."""
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ReskdError("AWS_PROFILE is set, and profiles need boto3: uv run --extra remote --with boto3 pipeline.py …, or "
                         "unset AWS_PROFILE and set AWS_ACCESS_KEY_ID") from error  # fmt: skip
    return Boto3CredentialProvider()
