"""How a teacher's feature map becomes fewer numbers: fewer times, a student's grid, a basis of the channels, bytes.

A map t [T,H,W,D] is stored as y [T',g,g',d], in this order:
  time     mean of T / T' consecutive times
  grid     pinv(U) t, with U the bilinear upsampling (align_corners False) of a student's grid to the teacher's: a loss
           that sees the student's map through U alone has the same gradient (its value is less by a constant)
  channels (t - mean) basis, with an orthonormal basis [D,d]
  codes    integers of (y - offset) / scale, a scale and an offset for each channel, of so many bits; a byte each, of which
           zstd leaves less the fewer bits there are, and next to nothing of the zeros of a map after a ReLU

The loss is taken in the basis and never inflates y to D channels. What is needed beside y lies at the cache's root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cache.errors import ReskdError

Constants = Mapping[str, np.ndarray]  # by name: basis [D,d], mean [D], scale [d], offset [d], float32; those in use


def upsampling(source: int, target: int) -> np.ndarray:
    """U, float64 [target, source]: bilinear interpolation of one axis, align_corners False, as torch's."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source)))


@lru_cache
def unsampling(target: int, source: int) -> np.ndarray:
    """pinv(U), float64 [source, target], of `upsampling(source, target)`. That of a grid is their Kronecker product.

    Raises ReskdError where the source is not the smaller one.
    """
    if source > target:
        raise ReskdError(
            f"a map of {target} positions a side can't be reduced to {source}: set targets.features.grid to the grid "
            "of the student's map, which must not be finer than the teacher's"
        )
    return np.linalg.pinv(upsampling(source, target))


def reduce_maps(maps: np.ndarray, settings: Mapping[str, Any], constants: Constants) -> np.ndarray:
    """Maps float [n,T,H,W,D] -> y, float32 [n,T',g,g',d]; `settings` are those of the identity's target."""
    maps = np.asarray(maps, np.float32)
    time, height, width = settings["grid"]
    if maps.shape[1] != time:
        maps = maps.reshape(len(maps), time, -1, *maps.shape[2:]).mean(2)
    if maps.shape[2:4] != (height, width):
        rows, columns = unsampling(maps.shape[2], height), unsampling(maps.shape[3], width)
        maps = np.einsum("gh,nthwd,kw->ntgkd", rows, maps, columns, optimize=True).astype(np.float32)
    return maps if "basis" not in constants else (maps - constants["mean"]) @ constants["basis"]


def reduced_shape(shape: Sequence[int], time: int | None, grid: Sequence[int] | None) -> list[int]:
    """[T',g,g'] of maps [T,H,W] stored with `time` and `grid`. Raises ReskdError where they can't be."""
    frames, height, width = shape
    if time is not None and (time > frames or frames % time):
        raise ReskdError(f"targets.features.time {time}: the teacher's map has {frames} times; give a divisor of it")
    for side, wanted in zip((height, width), grid or (), strict=False):
        if wanted > side:
            unsampling(side, wanted)
    return [time or frames, *(grid or (height, width))]
