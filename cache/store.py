"""Files of a cache: durable writes, and a zarr store that verifies what it reads."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from zarr.storage import LocalStore

from cache.errors import ReskdError

METADATA = "zarr.json"


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file. A kill or a power cut at any instant leaves the whole old file or the whole new one.

    Makes the folder if it is missing.
    """
    path = Path(path)
    make_folders(path.parent)
    partial = partial_file(path)
    with open(partial, "wb", opener=no_link) as f, naming(path):
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    move_into_place(partial, path)


def write_new(path: Path, parts: Sequence[bytes]) -> list:
    """Write a file that nothing names yet, durably but for its folder. Returns [size in bytes, sha256].

    A kill may leave a part of it.
    """
    digest = hashlib.sha256()
    with open(path, "wb", opener=no_link) as f, naming(path):
        for part in parts:
            f.write(part)
            digest.update(part)
        f.flush()
        os.fsync(f.fileno())
    return [sum(map(len, parts)), digest.hexdigest()]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError gets the name of the file that is written, which the system leaves out for a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def no_link(path: str, flags: int) -> int:
    """An `opener` for files of fixed names: a link that others put at the name isn't written through."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def check_inside(root: Path, *folders: Path) -> None:
    """Raises ReskdError if a folder that is written to lies outside of `root`, because it, or one above it, is a link."""
    for folder in folders:
        if not folder.resolve().is_relative_to(root.resolve()):
            raise ReskdError(f"{folder} is a link that leads out of {root}: remove it, and run cache-teacher again.")


def partial_file(path: Path) -> Path:
    """The path at which a file is written before its rename. The name is fixed, so that the next run overwrites it."""
    return path.with_name(f".{path.name}.partial")


def move_into_place(partial: Path, path: str | Path) -> None:
    """Rename a file, which is fsynced already, to its final path, durably."""
    os.replace(partial, path)
    sync(Path(path).parent)


def sync(path: str | Path) -> None:
    """fsync a file or a folder. Without the folder's fsync, new and renamed files in it may be lost in a power cut."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows has no fsync of folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(path: Path) -> None:
    """mkdir -p, durably."""
    if path.is_dir():
        return
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def file_digest(path: Path) -> list:
    """[size in bytes, sha256] of a file, read in pieces."""
    with open(path, "rb") as f:
        return [os.fstat(f.fileno()).st_size, hashlib.file_digest(f, "sha256").hexdigest()]


class VerifiedStore(LocalStore):
    """One shard's group, read-only. A chunk file is checked against the committed list when it is first read.

    zarr itself reads a missing chunk as fill values, and doesn't notice an exchanged one.
    """

    def __init__(self, root: Path | str, files: Mapping[str, Sequence]):
        super().__init__(root, read_only=True)
        self.files = files
        self.verified: set[str] = set()

    async def get(self, key, prototype=None, byte_range=None):
        return self._checked(key, await super().get(key, prototype, byte_range))

    def get_sync(self, key, *, prototype=None, byte_range=None):
        return self._checked(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))

    def _checked(self, key: str, buffer):
        if key.rpartition("/")[2] == METADATA:
            return buffer
        array, _, chunk = key.rpartition("/")
        listed = self.files.get(key)
        if listed is None:
            self._fail(array, chunk, "the shard's attributes don't list it")
        if buffer is None:
            self._fail(array, chunk, f"it is missing ({listed[0]} bytes were committed)")
        if len(buffer) != listed[0]:
            self._fail(array, chunk, f"it has {len(buffer)} bytes, {listed[0]} were committed")
        if key not in self.verified:
            if hashlib.sha256(buffer.as_numpy_array()).hexdigest() != listed[1]:
                self._fail(array, chunk, "its sha256 is not the committed one: the file was exchanged or damaged")
            self.verified.add(key)
        return buffer

    def _fail(self, array: str, chunk: str, what: str):
        raise ReskdError(
            f"{self.root}: array {array}, chunk {chunk}: {what}. Delete {self.root} and run cache-teacher again."
        )
