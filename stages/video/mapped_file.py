"""A video file that is mapped, not read: what isn't needed stays on the disk, however long the video is."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.video.errors import DecodeError


@contextmanager
def map_file(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, for `open_video`, `probe` and `decode_frames`. The mapping is closed with the context.

    A file that is cut while it is mapped ends the process (SIGBUS). Raises DecodeError for an empty file and for what is not a
    regular file, and OSError for a file that can't be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise DecodeError("it is not a regular file")
        if not status.st_size:
            raise DecodeError("empty file (0 bytes)")
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    with mapped:
        yield mapped


class BufferReader:
    """A file to be read, on bytes or a mapped file, which are not copied as `io.BytesIO` would copy them."""

    def __init__(self, data: bytes | mmap.mmap):
        self.data, self.position = data, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size < 0 else self.position + size
        part = self.data[self.position : end]
        self.position += len(part)
        return part

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, len(self.data))[whence])
        return self.position

    def tell(self) -> int:
        return self.position
