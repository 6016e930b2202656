"""How large a packed frame must be, so that no crop of it is enlarged. Sides are in units of a frame's shorter one."""

import math

import numpy as np

from cache.reader import CacheReader
from cache.view import ViewPolicy
from stages.shards.dataset import Dataset

_ROUNDING = 1e-6  # boxes lie on a grid of 2^-24: 0.8 is stored as a little less


def smallest_side(policy: ViewPolicy) -> float:
    """The smallest side that a box of this policy may have, whatever the clip."""
    if policy.crop == "multi_scale_crop":
        return min(policy.scales)
    if policy.crop == "random_resized_crop":
        return math.sqrt(policy.area[0] * min(policy.ratio[0], 1 / policy.ratio[1]))
    return policy.center_fraction if policy.crop == "center" else 1.0


def stored_side(cache: CacheReader, data: Dataset, views: int) -> float:
    """The smallest side of the boxes of the first `views` stored views of every clip of `data` that has them."""
    smallest = []
    for entry in data.shards:
        aspect = np.array([row.aspect if row.error is None else 1.0 for row in data.rows(entry.name)])
        units = np.stack([np.maximum(1, 1 / aspect), np.maximum(1, aspect)], axis=1)  # of height and width
        for view in range(views):
            block = cache.view(entry.name, view)
            smallest.append((block.box[:, 2:] * units)[block.valid].min(initial=1.0))
    return float(min(smallest))


def height_for(size: int, side: float) -> int:
    """px of the shorter side of a frame in which a box of this side has `size` px."""
    return math.ceil(size / side * (1 - _ROUNDING))


def size_served(height: int, side: float) -> int:
    """The largest size in px at which no box of this side is enlarged."""
    return math.floor(height * side * (1 + _ROUNDING))


def packed_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height in px of a frame whose shorter side becomes `short`; a smaller one stays as it is.

    The longer side is rounded up: a box of the whole of it is not enlarged either.
    """
    scale = short / min(width, height)
    return (width, height) if scale >= 1 else (math.ceil(width * scale - 1e-9), math.ceil(height * scale - 1e-9))
