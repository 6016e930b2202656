"""Files of a cache: durable writes, and a zarr store that verifies what it reads.

All that only reads a cache takes a `pathlib.Path`, or a path in an object store: an object with the same methods (`/`,
`open`, `read_bytes`, `is_file`, `iterdir`, `relative_to`), and with `files()`, which lists names and sizes below a folder.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zarr.core.buffer.core import default_buffer_prototype
from zarr.storage import LocalStore

from cache.errors import ReskdError
from cache.json_file import read_limited

METADATA = "zarr.json"
WRITER = ".writer"  # in a store, the object of the process that writes a shard's group
REQUESTS = 32  # of one call to a store, at once
CHUNKS = 16  # of them, if each reads a whole chunk into memory

T, R = TypeVar("T"), TypeVar("R")


def as_path(path: str | Path) -> Path:
    """A local path, where a text is given. A path in a store stays what it is."""
    return Path(path) if isinstance(path, str) else path


def side_by_side(path: Path, work: Callable[[T], R], items: Iterable[T], requests: int = REQUESTS) -> list[R]:
    """`work` for each item, in order. If `path` is in a store, where each request takes long, several at once."""
    if isinstance(path, Path):
        return list(map(work, items))
    with ThreadPoolExecutor(requests) as pool:
        return list(pool.map(work, items))


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
    """[size in bytes, sha256] of a file, which is read in pieces; of an object in a store, which is read whole."""
    if not isinstance(path, Path):
        data = path.read_bytes()
        return [len(data), hashlib.sha256(data).hexdigest()]
    with open(path, "rb") as f:
        return [os.fstat(f.fileno()).st_size, hashlib.file_digest(f, "sha256").hexdigest()]


class GroupStore(LocalStore):
    """A zarr group, read-only. If it lies in a store, each object is read whole by one request, and nothing is listed."""

    def __init__(self, root: Path | str):
        root = as_path(root)
        super().__init__(root if isinstance(root, Path) else Path(), read_only=True)
        self.root: Any = root
        self.fetched: dict[str, bytes] = {}  # of a store: key -> the object, until it is read
        if not isinstance(root, Path):
            self._is_open = True  # zarr would ask whether the folder exists

    async def get(self, key, prototype=None, byte_range=None):
        data = self.fetched.pop(key, None)
        return await super().get(key, prototype, byte_range) if data is None else _buffer(data, prototype)

    def get_sync(self, key, *, prototype=None, byte_range=None):
        data = self.fetched.pop(key, None)
        if data is None:
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return _buffer(data, prototype)

    def fetch(self, keys: Sequence[str]) -> None:
        """Read these objects of a store at once; the next read of each takes what is here. Local files are left alone."""
        if isinstance(self.root, Path):
            return
        for key, data in zip(keys, side_by_side(self.root, self._read, keys, CHUNKS), strict=True):
            if data is not None:
                self.fetched[key] = data

    def metadata(self, name: str) -> bytes:
        """The metadata of an array. Raises FileNotFoundError. In a store they are fetched once, for zarr too."""
        key = f"{name}/{METADATA}"
        data = self.fetched.get(key) or read_limited(self.root / key)
        if not isinstance(self.root, Path):
            self.fetched[key] = data
        return data

    def _read(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:  # whoever needs it says so
            return None


def _buffer(data: bytes, prototype: Any) -> Any:
    return (prototype or default_buffer_prototype()).buffer.from_bytes(data)


class VerifiedStore(GroupStore):
    """One shard's group, read-only. A chunk file is checked against the committed list when it is first read.

    zarr itself reads a missing chunk as fill values, and doesn't notice an exchanged one.
    """

    def __init__(self, root: Path | str, files: Mapping[str, Sequence]):
        super().__init__(root)
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
