"""How large packed frames must be, so that no crop is enlarged. The unit of a side is the frame's shorter side."""

import math

import numpy as np

from cache.reader import CacheReader
from cache.view import ViewPolicy
from stages.shards.dataset import Dataset

_ROUNDING = 1e-6  # boxes are multiples of 2^-24: 0.8 is stored as a slightly smaller number


def smallest_side(policy: ViewPolicy) -> float:
    """The smallest side that a box of this policy can have, for any clip."""
    if policy.crop == "multi_scale_crop":
        return min(policy.scales)
    if policy.crop == "random_resized_crop":
        return math.sqrt(policy.area[0] * min(policy.ratio[0], 1 / policy.ratio[1]))
    return policy.center_fraction if policy.crop == "center" else 1.0


def smallest_stored_side(cache: CacheReader, data: Dataset, views: int) -> float:
    """The smallest side of a box in the first `views` stored views of the clips of `data`."""
    smallest = []
    for entry in data.shards:
        aspect = np.array([row.aspect if row.error is None else 1.0 for row in data.rows(entry.name)])
        units = np.stack([np.maximum(1, 1 / aspect), np.maximum(1, aspect)], axis=1)  # of height and width
        for view in range(views):
            block = cache.view(entry.name, view)
            smallest.append((block.box[:, 2:] * units)[block.valid].min(initial=1.0))
    return float(min(smallest))


def height_for(size: int, side: float) -> int:
    """The shorter side of a frame, in px, in which a box of this side has `size` px."""
    return math.ceil(size / side * (1 - _ROUNDING))


def largest_size_served(height: int, side: float) -> int:
    """The largest size, in px, for which a frame of this height enlarges no box of this side."""
    return math.floor(height * side * (1 + _ROUNDING))


def packed_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height, in px, of a frame after its shorter side is shrunk to `short`; a smaller frame keeps its size.

    The longer side is rounded up, so that a box of its whole length is not enlarged.
    """
    scale = short / min(width, height)
    return (width, height) if scale >= 1 else (math.ceil(width * scale - 1e-9), math.ceil(height * scale - 1e-9))
