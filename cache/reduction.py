"""How a teacher's feature map is made smaller: fewer times, the student's grid, a basis of the channels, integer codes.

A map t [T,H,W,D] is stored as y [T',g,g',d]. The steps, in this order:
  time     the mean of T / T' consecutive times
  grid     pinv(U) t. U is the bilinear upsampling (align_corners False) of the student's grid to the teacher's. If a loss
           sees the student's map through U alone, its gradient stays the same (its value is smaller by a constant)
  channels (t - mean) basis. The columns of basis [D,d] are orthonormal
  codes    (y - offset) / scale, rounded to integers, with a scale and an offset for each channel. A code takes one byte;
           after zstd, fewer levels take fewer bytes, and the zeros of a map after a ReLU take almost none

The loss is computed in the basis: y is never expanded to D channels. The cache's root has the arrays that are needed with y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cache.errors import ReskdError

Constants = Mapping[str, np.ndarray]  # float32 by name: basis [D,d], mean [D], scale [d], offset [d]; only those in use


def upsampling(source: int, target: int) -> np.ndarray:
    """U, float64 [target, source]: bilinear interpolation along one axis, as torch's with align_corners=False."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source)))


@lru_cache
def upsampling_pinv(target: int, source: int) -> np.ndarray:
    """pinv(U), float64 [source, target], for U = `upsampling(source, target)`. For two axes: the Kronecker product of two.

    Raises ReskdError if `source` is larger than `target`.
    """
    if source > target:
        raise ReskdError(
            f"a map of {target} positions a side can't be reduced to {source}: set targets.features.grid to the grid "
            "of the student's map, which must not be finer than the teacher's."
        )
    return np.linalg.pinv(upsampling(source, target))


def reduce_maps(maps: np.ndarray, settings: Mapping[str, Any], constants: Constants) -> np.ndarray:
    """Maps float [n,T,H,W,D] -> y, float32 [n,T',g,g',d]. `settings`: the identity's settings of the target "features"."""
    maps = np.asarray(maps, np.float32)
    time, height, width = settings["grid"]
    if maps.shape[1] != time:
        maps = maps.reshape(len(maps), time, -1, *maps.shape[2:]).mean(2)
    if maps.shape[2:4] != (height, width):
        rows, columns = upsampling_pinv(maps.shape[2], height), upsampling_pinv(maps.shape[3], width)
        maps = np.einsum("gh,nthwd,kw->ntgkd", rows, maps, columns, optimize=True).astype(np.float32)
    return maps if "basis" not in constants else (maps - constants["mean"]) @ constants["basis"]


def reduced_shape(shape: Sequence[int], time: int | None, grid: Sequence[int] | None) -> list[int]:
    """[T',g,g'] of maps [T,H,W] stored with `time` and `grid`. Raises ReskdError if maps can't be reduced to that."""
    frames, height, width = shape
    if time is not None and (time > frames or frames % time):
        raise ReskdError(
            f"targets.features.time {time}: the teacher's map has {frames} times; give a divisor of {frames}."
        )
    for side, wanted in zip((height, width), grid or (), strict=False):
        if wanted > side:
            upsampling_pinv(side, wanted)  # raises
    return [time or frames, *(grid or (height, width))]
