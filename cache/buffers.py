"""Rows of a shard's group on their way to disk. Small arrays are kept whole until the end, feature maps one block at a time."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache.arrays import ArraySpec, chunk_file, encode_chunk, open_for_writing
from cache.store import write_new

Run = Callable[[int, Callable[[], Any]], Callable[[], Any]]


def run_now(size: int, job: Callable[[], Any]) -> Callable[[], Any]:
    """Runs a job that holds `size` bytes at once; returns a function that gives its result."""
    result = job()
    return lambda: result


class RowBuffers:
    """Takes the rows of a group's arrays in tar order. A full block of feature maps is written at once, since the maps of a
    shard don't fit in memory.

    `specs`: the arrays of the group in `folder`, by name. `clips`: rows of the shard. `run`: as `run_now`, or starts the job
    elsewhere: a job compresses a block, writes its file durably, and computes the digest.
    """

    def __init__(self, folder: Path, specs: Mapping[str, ArraySpec], clips: int, run: Run = run_now):
        self.folder, self.specs, self.clips, self._run = folder, specs, clips, run
        self._blocks: list[Callable[[], tuple[str, list]]] = []  # that were handed to `run`
        self._given_up = False
        self._arrays = {name: open_for_writing(folder, name) for name in specs}  # which checks their metadata
        self._buffers: dict[tuple[str, int], np.ndarray] = {}  # by array and view

    def append(self, name: str, view: int, start: int, values: np.ndarray) -> None:
        """Add the rows from `start` on to a view of the array `name`."""
        stop, size = start + len(values), self.specs[name].rows or self.clips
        for low in range(start - start % size, stop, size):
            first, last = max(start, low), min(stop, low + size)
            if (name, view) not in self._buffers:
                self._buffers[name, view] = self._new_buffer(name, size, low)
            self._buffers[name, view][first - low : last - low] = values[first - start : last - start]
            if self.specs[name].rows is not None and last in (low + size, self.clips):
                block = self._buffers.pop((name, view))
                self._blocks.append(self._run(block.nbytes, partial(self._write_block, name, view, low, block)))

    def write_small_arrays(self, views: range) -> None:
        """Write the arrays that are kept whole. All their rows must have been added."""
        for name, spec in self.specs.items():
            if spec.rows is None:
                for view in views:
                    self._arrays[name][:, view] = self._buffers[name, view]

    def written_blocks(self) -> dict[str, list]:
        """The files of all full blocks: file -> [size, sha256]. Waits until they are written; raises what went wrong."""
        return dict(wait() for wait in self._blocks)

    def clear(self) -> None:
        """Forget all rows. No job runs any more when this returns; a block that isn't written yet is left out."""
        self._given_up = True
        self._buffers.clear()
        for wait in self._blocks:
            with contextlib.suppress(Exception):  # `written_blocks` raises it
                wait()
        self._blocks.clear()

    def _write_block(self, name: str, view: int, low: int, block: np.ndarray) -> tuple[str, list]:
        if self._given_up:
            return name, []
        spec = self.specs[name]
        file = f"{name}/{chunk_file(spec, low // spec.rows, view)}"
        return file, write_new(self.folder / file, encode_chunk(self._arrays[name], block))

    def _new_buffer(self, name: str, size: int, low: int) -> np.ndarray:
        """For the rows from `low` on. All rows of the shard come before it is written; behind the last one are fill values."""
        spec = self.specs[name]
        buffer = np.empty((min(size, self.clips), *spec.tail), dtype=spec.dtype)
        buffer[self.clips - low :] = spec.fill
        return buffer
