"""A tar that is open for reads by position."""

import os
from pathlib import Path


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
