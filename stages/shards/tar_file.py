"""A tar that is open for reads by position: a local one, or one at a URL."""

import os
from pathlib import Path

from stages.remote.url_path import UrlPath


class TarFile:
    """A file descriptor for reads by position. Threads may share it. It is closed when nobody refers to it any more."""

    def __init__(self, path: Path | str):
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on; fewer if the file ends before."""
        data = os.pread(self.fd, size, offset)
        while len(data) < size and (more := os.pread(self.fd, size - len(data), offset + len(data))):
            data += more  # Linux reads at most 2 GiB at once
        return data

    def __del__(self):
        if "fd" in self.__dict__:
            os.close(self.fd)


class RemoteTar:
    """A tar at a URL; each read is a request. `size`: in bytes, asked for once."""

    def __init__(self, path: UrlPath):
        self.path, self.size = path, path.size()

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on; fewer if the object ends before."""
        return self.path.read_range(offset, offset + size)


class FilePart:
    """A part of a tar that is in memory, from the byte `start` on."""

    def __init__(self, data: bytes, start: int):
        self.data, self.start = memoryview(data), start

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, a place in the whole tar; fewer if the part ends before."""
        return bytes(self.data[offset - self.start : offset - self.start + size])


def open_tar(path: Path | UrlPath) -> TarFile | RemoteTar:
    """Raises FileNotFoundError and other OSErrors."""
    return RemoteTar(path) if isinstance(path, UrlPath) else TarFile(path)
