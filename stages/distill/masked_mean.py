"""What losses share: float32 numbers, a mean over the rows that have a target, the shortest vector that has a direction."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-6  # length of a vector: a shorter one has no direction, and its cosine with others is near 0


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays; every other type becomes float32, so autocast changes nothing in a loss."""
    return x if x.dtype == torch.float64 else x.float()


def masked_mean(per_row: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B] over the rows of the mask (bool [B]); 0 if it has none. The host doesn't wait for the device."""
    return torch.where(mask, per_row, 0).sum() / mask.sum().clamp(min=1)


def without_masked_rows(values: Tensor, mask: Tensor) -> Tensor:
    """[B, ...] with 0 in the rows outside the mask, which may hold NaN."""
    return values.masked_fill(~mask.view(-1, *[1] * (values.dim() - 1)), 0)
