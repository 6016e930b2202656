"""Sends a value with its arrays and tensors to another process, in a file in memory that both processes map.

The file is anonymous (memfd): it needs no room in /dev/shm, which containers keep small, and it is gone when nobody maps
it. It travels with the message: a sender that ends, or is stopped, after it has sent takes nothing back.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, BinaryIO

import numpy as np
import torch

ALIGNMENT = 64  # bytes


def send_value(connection: Connection, value: Any) -> None:
    """Send a value that `receive_value` receives. Raises OSError if there is no memory for it, or no receiver."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=arrays.append).dump(value)
    with _new_file() as file:
        sizes = []
        for part in (pickled.getbuffer(), *(array.raw() for array in arrays)):
            file.write(part)
            file.write(bytes(-len(part) % ALIGNMENT))
            sizes.append(len(part))
        file.flush()
        connection.send(sizes)
        send_handle(connection, file.fileno(), None)


def send_small(connection: Connection, value: Any) -> None:
    """Send a value that is no list, and that `receive_value` receives, without a file."""
    connection.send(value)


def receive_value(connection: Connection) -> tuple[Any, int]:
    """A value, and the bytes of its file. Raises EOFError or ConnectionError if the sender has ended, and OSError if this
    process can't open the file."""
    sizes = connection.recv()
    if not isinstance(sizes, list):  # of `send_small`
        return sizes, 0
    try:
        handle = recv_handle(connection)
    except RuntimeError as error:  # the system drops a file that this process may not open any more
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
    try:
        memory = memoryview(mmap.mmap(handle, 0))
    finally:
        os.close(handle)
    parts, start = [], 0
    for size in sizes:
        parts.append(memory[start : start + size])
        start += size + -size % ALIGNMENT
    return pickle.loads(parts[0], buffers=parts[1:]), start


def _new_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("reskd"), "wb")
    return tempfile.TemporaryFile()


class _Pickler(pickle.Pickler):
    """Leaves the values of arrays and tensors out of the pickle. Tensors keep their strides and share their storages."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.storages: dict[int, np.ndarray] = {}

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor or not (storage := value.untyped_storage()).nbytes():
            return NotImplemented
        if storage.data_ptr() not in self.storages:
            self.storages[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        values = self.storages[storage.data_ptr()]
        return _tensor, (values, value.dtype, value.storage_offset(), value.size(), value.stride())


def _tensor(values: np.ndarray, dtype: torch.dtype, offset: int, size: tuple, stride: tuple) -> torch.Tensor:
    return torch.empty(0, dtype=dtype).set_(torch.from_numpy(values).untyped_storage(), offset, size, stride)
