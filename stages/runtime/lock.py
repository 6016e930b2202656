"""A lock on an output: one process of a machine at a time writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cache.errors import ReskdError
from cache.store import naming
from stages.remote.outputs import make_private, working_folder
from stages.remote.url_path import Location, UrlPath

TIMEOUT = 7  # seconds: decoding workers inherit the lock, and end up to 1 s after their parent was killed


@contextmanager
def locked(path: Location, file: Path | None = None) -> Iterator[None]:
    """Lock the folder `path` for this process. The lock ends with the process, even if the process is killed.

    `file`: the lock file; by default a hidden file beside the folder. For a URL it must be given.
    An OSError inside that names no file, as for a full disk, gets the name of the folder.
    Raises ReskdError if another process holds the lock, or if the file can't be written.
    """
    file = file or path.parent / f".{path.name}.lock"
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=TIMEOUT)
    except Timeout:
        raise ReskdError(
            f"{path} is in use by another process: wait until that has ended, or give another output"
        ) from None
    except OSError as error:
        raise ReskdError(f"{path} can't be written: {error.strerror or error}; give another output") from error
    try:
        with naming(path):
            yield
    finally:
        lock.release()


@contextmanager
def locked_working_folder(url: UrlPath) -> Iterator[Path]:
    """Lock the folder of this machine that the output at `url` is made in, and give its path. It isn't made here."""
    folder = working_folder(url)
    make_private(folder.parent)
    with locked(url, folder.with_name(f"{folder.name}.lock")):
        yield folder
