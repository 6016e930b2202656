"""Rows of a shard's group on their way to disk. Small arrays are kept whole until the end, feature maps one block at a time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache.arrays import ArraySpec, open_for_writing


class RowBuffers:
    """Takes the rows of a group's arrays in tar order. A full block of feature maps is written at once, since the maps of a
    shard don't fit in memory.

    `specs`: the arrays of the group in `folder`, by name. `clips`: rows of the shard.
    """

    def __init__(self, folder: Path, specs: Mapping[str, ArraySpec], clips: int):
        self.specs, self.clips = specs, clips
        self._arrays = {name: open_for_writing(folder, name) for name in specs}
        self._buffers: dict[tuple[str, int], np.ndarray] = {}  # by array and view

    def append(self, name: str, view: int, start: int, values: np.ndarray) -> None:
        """Add the rows from `start` on to a view of the array `name`."""
        stop, size = start + len(values), self.specs[name].rows or self.clips
        for low in range(start - start % size, stop, size):
            first, last = max(start, low), min(stop, low + size)
            if (name, view) not in self._buffers:
                self._buffers[name, view] = self._empty(name, size)
            self._buffers[name, view][first - low : last - low] = values[first - start : last - start]
            if self.specs[name].rows is not None and last in (low + size, self.clips):
                self._arrays[name][low:last, view] = self._buffers.pop((name, view))[: last - low]

    def write_small_arrays(self, views: range) -> None:
        """Write the arrays that are kept whole. All their rows must have been added."""
        for name, spec in self.specs.items():
            if spec.rows is None:
                for view in views:
                    self._arrays[name][:, view] = self._buffers[name, view]

    def clear(self) -> None:
        self._buffers.clear()

    def _empty(self, name: str, size: int) -> np.ndarray:
        spec = self.specs[name]
        return np.full((min(size, self.clips), *spec.tail), spec.fill, dtype=spec.dtype)
