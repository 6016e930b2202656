"""What one process holds open of a data set or a pack: its tars, and the rows of its shards."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

OPEN_SHARDS = 256  # of each kind; at 1,000 rows a shard some 100 MB of rows
T = TypeVar("T")


class Handles:
    """Each process has its own: a fork or a pickled copy begins with none."""

    def __init__(self):
        self._pid, self._rows, self._tars = os.getpid(), Lru(OPEN_SHARDS), Lru(OPEN_SHARDS)

    def __reduce__(self):
        return Handles, ()

    @property
    def rows(self) -> "Lru":
        return self._here()._rows

    @property
    def tars(self) -> "Lru":
        return self._here()._tars

    def _here(self) -> "Handles":
        if self._pid != os.getpid():  # forked: a lock may have been held just then
            self.__init__()
        return self


class Lru:
    """The latest values by shard. One that leaves is dropped, never closed: another thread may be reading from it."""

    def __init__(self, capacity: int):
        self.capacity, self.lock, self.kept = capacity, threading.Lock(), OrderedDict()

    def get(self, shard: str, load: Callable[[str], T]) -> T:
        """Threads that miss at once all load, and one of the values is kept."""
        with self.lock:
            if shard in self.kept:
                self.kept.move_to_end(shard)
                return self.kept[shard]
        value = load(shard)
        with self.lock:
            self.kept[shard] = value
            if len(self.kept) > self.capacity:
                self.kept.popitem(last=False)
        return value


class TarFile:
    """A file descriptor for reads by position, which threads may share. It closes with its last user."""

    def __init__(self, path: Path):
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Fewer bytes than asked for where the file ends."""
        data = os.pread(self.fd, size, offset)
        while len(data) < size and (more := os.pread(self.fd, size - len(data), offset + len(data))):
            data += more  # Linux gives at most 2 GiB at once
        return data

    def __del__(self):
        if "fd" in self.__dict__:
            os.close(self.fd)
