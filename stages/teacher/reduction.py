"""The reduction of a teacher's maps on its device, and the basis and ranges that are estimated on a sample.

`cache/reduction.py` defines the reduction. This file has its linear parts in torch, so that the device sends no more
numbers than the cache stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.codecs import codec_of, from_stored, scale_and_offset, to_codes
from cache.errors import ReskdError
from cache.reduction import Constants, upsampling_pinv
from stages.teacher.hadamard import hadamard

KEPT = 128 * 2**20  # bytes of sampled maps kept for the ranges, and the same number for the error
MARGIN = 0.1  # of a range, added on either side: maps that are not kept may go beyond


def constants_on(device: torch.device, constants: Constants) -> dict[str, Tensor]:
    """The basis and the mean, as `reduce_features` takes them."""
    return {name: torch.from_numpy(constants[name]).to(device) for name in ("basis", "mean") if name in constants}


def reduce_features(features: Tensor, grid: tuple[int, int, int], tensors: Mapping[str, Tensor]) -> Tensor:
    """float32 [B,T,H,W,D] -> [B,*grid,d]: fewer times, then a smaller grid, then the basis; each step only if needed."""
    time, height, width = grid
    if features.shape[1] != time:
        features = features.unflatten(1, (time, -1)).mean(2)
    if features.shape[2:4] != (height, width):
        sides = zip(features.shape[2:4], (height, width), strict=True)
        rows, columns = (_unsampling_on(features.device, source, target) for source, target in sides)
        features = torch.einsum("gh,bthwd,kw->btgkd", rows, features, columns)
    return features if "basis" not in tensors else (features - tensors["mean"]) @ tensors["basis"]


@lru_cache
def _unsampling_on(device: torch.device, source: int, target: int) -> Tensor:
    """Copied to the device once: a copy from unpinned memory would wait for the forward, in each batch."""
    return torch.from_numpy(upsampling_pinv(source, target)).to(device, torch.float32)


@dataclass
class Sample:
    """Statistics of sampled maps, from one pass: second moments, ranges, and as many maps as fit into KEPT bytes."""

    grid: tuple[int, int, int]
    moments: bool  # whether second moments are needed, for a basis
    count: int = 0  # positions of the maps that are not held out
    total: Any = 0.0  # [D] float64
    outer: Any = 0.0  # [D,D] float64
    low: Any = None  # [D]
    high: Any = None  # [D]
    fitted: list[np.ndarray] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    grid_energy: dict[str, float] = field(default_factory=lambda: {"total": 0.0, "lost": 0.0})

    def add(self, features: Tensor, held_out: np.ndarray) -> None:
        """Add maps float32 [n,T,H,W,D]; `held_out` bool [n]: maps that measure the error and are not fitted."""
        reduced = reduce_features(features, self.grid, {})
        fit = reduced[torch.from_numpy(~held_out)].flatten(0, 3)
        if len(fit):
            low, high = (side.cpu().numpy() for side in torch.aminmax(fit, dim=0))
            self.low = low if self.low is None else np.minimum(self.low, low)
            self.high = high if self.high is None else np.maximum(self.high, high)
            self.count += len(fit)
            self.total = self.total + fit.double().sum(0).cpu()
            if self.moments:
                self.outer = self.outer + (fit.T @ fit).double().cpu()
        for kept, chosen in ((self.fitted, ~held_out), (self.held_out, held_out)):
            for reduced_map in reduced[torch.from_numpy(chosen)].cpu().numpy():
                if sum(m.nbytes for m in kept) + reduced_map.nbytes <= KEPT or not kept:
                    kept.append(reduced_map)
        if held_out.any():
            self._measure_grid(features[torch.from_numpy(held_out)], reduced[torch.from_numpy(held_out)])

    def _measure_grid(self, features: Tensor, reduced: Tensor) -> None:
        """Add the maps' energy about their mean, and the part of it that an upsampled reduced map has lost."""
        features = features.unflatten(1, (self.grid[0], -1)).mean(2)
        images = reduced.flatten(0, 1).permute(0, 3, 1, 2)
        upsampled = F.interpolate(images, size=tuple(features.shape[2:4]), mode="bilinear", align_corners=False)
        upsampled = upsampled.permute(0, 2, 3, 1).unflatten(0, features.shape[:2])
        self.grid_energy["total"] += float((features - features.mean((0, 1, 2, 3))).double().square().sum())
        self.grid_energy["lost"] += float((features - upsampled).double().square().sum())


def gather_sample(maps: Iterable[tuple[Tensor, np.ndarray]], grid: tuple[int, int, int], moments: bool) -> Sample:
    """The Sample of batches (maps, held_out), as `Sample.add` takes them. Raises ReskdError without a map to fit."""
    sample = Sample(grid, moments)
    for features, held_out in maps:
        sample.add(features, held_out)
    if not sample.count:
        raise ReskdError("targets.features: no clip of the sample gives a map: none can be decoded, or the teacher's outputs "
                         "are not finite. Check its checkpoint and dtype, or raise `sample`")  # fmt: skip
    return sample


def estimate_constants(
    sample: Sample, codec: str, dims: int | None, energy: float | None, rotate: str | None = None
) -> dict[str, np.ndarray]:
    """The constants that reduce and round maps: a basis (orthonormal, PCA about the mean) and the ranges of the codes.

    With `rotate`, the basis is multiplied by a Hadamard matrix over the root of its width. The basis stays orthonormal and
    spans the same directions, and each coordinate has the mean of the variances ("PHI-S: Distribution Balancing for
    Label-Free Multi-Teacher Distillation", Ranzinger et al. 2024).
    Raises ReskdError where `dims` is larger than the number of channels.
    """
    constants = {}
    if dims is not None or energy is not None:
        constants |= _basis(sample, dims, energy)
    if rotate is not None:
        turn = hadamard(constants["basis"].shape[1]) / np.sqrt(constants["basis"].shape[1])
        constants["basis"] = (constants["basis"].astype(np.float64) @ turn).astype(np.float32)
    if codec_of("features", codec).levels is not None:
        low, high = sample.low, sample.high
        if "basis" in constants:
            values = np.concatenate([(m - constants["mean"]) @ constants["basis"] for m in sample.fitted])
            values = values.reshape(-1, values.shape[-1])
            low, high = values.min(0), values.max(0)
            margin = MARGIN * (high - low)
            low, high = low - margin, high + margin
        constants |= scale_and_offset(low, high, codec)
    return constants


def _basis(sample: Sample, dims: int | None, energy: float | None) -> dict[str, np.ndarray]:
    mean = sample.total / sample.count
    values, vectors = torch.linalg.eigh(sample.outer / sample.count - torch.outer(mean, mean))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if dims is None:
        share = values.cumsum(0) / values.sum()
        dims = min(int((share < energy).sum()) + 1, len(values))
    if dims > len(values):
        raise ReskdError(f"targets.features.dims {dims}: the teacher's map has {len(values)} channels; ask for fewer")
    basis = vectors[:, :dims]
    # An eigenvector's sign is free, and libraries choose differently. So it is fixed: the largest number is positive.
    basis = basis * torch.where(basis.gather(0, basis.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    return {"basis": basis.float().contiguous().numpy(), "mean": mean.float().numpy()}


def encoding_error(sample: Sample, constants: Constants, codec: str = "int8") -> dict[str, float]:
    """What the encoding costs on the held-out maps, in shares of their energy (about its mean).

    "channels": energy that the basis keeps. "grid": energy that fewer times and positions keep; a loss on that grid
    doesn't see the rest. "rounding": error of the stored numbers, as a share of the kept energy, which is the loss of a
    student that always predicts the mean. "held_out": maps measured on. "fitted": positions of the maps fitted to.
    """
    maps = np.stack(sample.held_out or sample.fitted).astype(np.float64)
    maps = maps.reshape(-1, maps.shape[-1])
    energy = max(float(np.square(maps - maps.mean(0)).sum()), 1e-30)
    grid_share = 1 - sample.grid_energy["lost"] / max(sample.grid_energy["total"], 1e-30)
    result = {"channels": 1.0, "grid": grid_share, "rounding": 0.0}
    stored = maps.astype(np.float32)
    if "basis" in constants:
        centred = maps - constants["mean"]
        stored = (centred @ constants["basis"]).astype(np.float32)
        result["channels"] = 1 - float(np.square(centred - stored @ constants["basis"].T).sum()) / energy
    codes = to_codes(stored, constants, codec) if "scale" in constants else stored.astype(np.float16)
    kept = max(float(np.square(stored - stored.mean(0)).sum()), 1e-30)
    result["rounding"] = float(np.square(from_stored(codes, constants) - stored).sum()) / kept
    return result | {"held_out": float(len(sample.held_out)), "fitted": float(sample.count)}
