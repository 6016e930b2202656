"""A tar that is open for reads by position."""

import os
from pathlib import Path


class TarFile:
    """A file descriptor for reads by position. Threads may share it. It is closed when nobody refers to it any more."""

    def __init__(self, path: Path):
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
