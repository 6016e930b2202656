"""A lock on an output folder: one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cache.errors import ReskdError

PATIENCE = 7  # seconds: a DataLoader's worker inherits the lock, and notices within five that its parent was killed


@contextmanager
def in_use(path: Path, file: Path | None = None) -> Iterator[None]:
    """Hold the folder `path` for this process. The lock ends with the process, however that ends.

    `file` is the lock's; a hidden file beside the folder where it isn't given.
    Raises ReskdError where another process holds the folder, or the file can't be written.
    """
    file = file or path.parent / f".{path.name}.lock"
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise ReskdError(f"{path} is in use by another process: wait for it, or give another output") from None
    except OSError as error:
        raise ReskdError(f"{path} can't be written: {error.strerror or error}; give another output") from error
    try:
        yield
    finally:
        lock.release()
