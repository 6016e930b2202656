"""A teacher's maps as a cache stores them, on the teacher's device; and the basis and ranges, estimated on a sample.

The reduction itself is defined in `cache/reduction.py`; here are its linear parts in torch, so that what leaves the
device is as small as what is stored.
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

from cache.codecs import codec_of, from_stored, ranges, to_codes
from cache.errors import ReskdError
from cache.reduction import Constants, unsampling

KEPT = 128 * 2**20  # bytes of sampled maps that are kept for the ranges, and as many for the error
MARGIN = 0.1  # of a range, on either side, for what the kept maps don't show


def constants_on(device: torch.device, constants: Constants) -> dict[str, Tensor]:
    """The basis and the mean, as `reduce_features` takes them."""
    return {name: torch.from_numpy(constants[name]).to(device) for name in ("basis", "mean") if name in constants}


def reduce_features(features: Tensor, grid: tuple[int, int, int], tensors: Mapping[str, Tensor]) -> Tensor:
    """float32 [B,T,H,W,D] -> [B,*grid,d]: fewer times, then a smaller grid, then the basis, each where there is one."""
    time, height, width = grid
    if features.shape[1] != time:
        features = features.unflatten(1, (time, -1)).mean(2)
    if features.shape[2:4] != (height, width):
        sides = zip(features.shape[2:4], (height, width), strict=True)
        rows, columns = (_unsampling_on(features.device, have, want) for have, want in sides)
        features = torch.einsum("gh,bthwd,kw->btgkd", rows, features, columns)
    return features if "basis" not in tensors else (features - tensors["mean"]) @ tensors["basis"]


@lru_cache
def _unsampling_on(device: torch.device, have: int, want: int) -> Tensor:
    """There once: a copy from memory that isn't pinned would wait for the forward, at each batch."""
    return torch.from_numpy(unsampling(have, want)).to(device, torch.float32)


@dataclass
class Sample:
    """What is gathered of sampled maps, in one pass: second moments, ranges, and as many maps as fit."""

    grid: tuple[int, int, int]
    moments: bool  # a basis is wanted
    count: int = 0
    total: Any = 0.0  # [D] float64
    outer: Any = 0.0  # [D,D] float64
    low: Any = None
    high: Any = None
    fitted: list[np.ndarray] = field(default_factory=list)
    held: list[np.ndarray] = field(default_factory=list)
    whole: dict[str, float] = field(default_factory=lambda: {"energy": 0.0, "lost": 0.0})

    def add(self, features: Tensor, held: np.ndarray) -> None:
        """Maps float32 [n,T,H,W,D]; `held` bool [n]: not to be fitted on, but to measure the error."""
        reduced = reduce_features(features, self.grid, {})
        fit = reduced[torch.from_numpy(~held)].flatten(0, 3)
        if len(fit):
            low, high = (side.cpu().numpy() for side in torch.aminmax(fit, dim=0))
            self.low = low if self.low is None else np.minimum(self.low, low)
            self.high = high if self.high is None else np.maximum(self.high, high)
            self.count += len(fit)
            self.total = self.total + fit.double().sum(0).cpu()
            if self.moments:
                self.outer = self.outer + (fit.T @ fit).double().cpu()
        for keep, chosen in ((self.fitted, ~held), (self.held, held)):
            for one in reduced[torch.from_numpy(chosen)].cpu().numpy():
                if sum(m.nbytes for m in keep) + one.nbytes <= KEPT or not keep:
                    keep.append(one)
        if held.any():
            self._measure_grid(features[torch.from_numpy(held)], reduced[torch.from_numpy(held)])

    def _measure_grid(self, features: Tensor, reduced: Tensor) -> None:
        """What times and positions lose: the energy about the map's mean that an upsampled reduced map doesn't have."""
        features = features.unflatten(1, (self.grid[0], -1)).mean(2)
        images = reduced.flatten(0, 1).permute(0, 3, 1, 2)
        back = F.interpolate(images, size=tuple(features.shape[2:4]), mode="bilinear", align_corners=False)
        back = back.permute(0, 2, 3, 1).unflatten(0, features.shape[:2])
        self.whole["energy"] += float((features - features.mean((0, 1, 2, 3))).double().square().sum())
        self.whole["lost"] += float((features - back).double().square().sum())


def gather(maps: Iterable[tuple[Tensor, np.ndarray]], grid: tuple[int, int, int], moments: bool) -> Sample:
    """A sample of (maps, held); raises ReskdError where there is nothing to fit on."""
    sample = Sample(grid, moments)
    for features, held in maps:
        sample.add(features, held)
    if not sample.count:
        raise ReskdError("targets.features: no clip of the sample gives a map: none can be decoded, or the teacher's answers "
                         "aren't finite: look into its checkpoint and dtype, or raise `sample`")  # fmt: skip
    return sample


def estimate(sample: Sample, codec: str, dims: int | None, energy: float | None) -> dict[str, np.ndarray]:
    """The constants that maps are reduced and rounded by: of a basis (orthonormal, PCA about the mean) and of codes.

    Raises ReskdError where more dimensions are wanted than there are channels.
    """
    constants = {}
    if dims is not None or energy is not None:
        constants |= _basis(sample, dims, energy)
    if codec_of("features", codec).levels is not None:
        low, high = sample.low, sample.high
        if "basis" in constants:
            values = np.concatenate([(m - constants["mean"]) @ constants["basis"] for m in sample.fitted])
            values = values.reshape(-1, values.shape[-1])
            low, high = values.min(0), values.max(0)
            room = MARGIN * (high - low)
            low, high = low - room, high + room
        constants |= ranges(low, high, codec)
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
    # An eigenvector's sign is free: fixed, lest it be another library's choice.
    basis = basis * torch.where(basis.gather(0, basis.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    return {"basis": basis.float().contiguous().numpy(), "mean": mean.float().numpy()}


def error_of(sample: Sample, constants: Constants, codec: str = "int8") -> dict[str, float]:
    """What the encoding costs on the maps that were held out, in shares of their energy (about its mean).

    "channels": energy that the basis keeps. "grid": that fewer times and positions keep; a loss on that grid doesn't see
    the rest. "rounding": error of the stored numbers, in shares of the energy that is kept, which is the loss of a student
    that always answers the mean.
    """
    maps = np.stack(sample.held or sample.fitted).astype(np.float64)
    maps = maps.reshape(-1, maps.shape[-1])
    about = maps - maps.mean(0)
    energy = max(float(np.square(about).sum()), 1e-30)
    result = {"channels": 1.0, "grid": 1 - sample.whole["lost"] / max(sample.whole["energy"], 1e-30), "rounding": 0.0}
    stored = maps.astype(np.float32)
    if "basis" in constants:
        centred = maps - constants["mean"]
        stored = (centred @ constants["basis"]).astype(np.float32)
        result["channels"] = 1 - float(np.square(centred - stored @ constants["basis"].T).sum()) / energy
    codes = to_codes(stored, constants, codec) if "scale" in constants else stored.astype(np.float16)
    kept = max(float(np.square(stored - stored.mean(0)).sum()), 1e-30)
    result["rounding"] = float(np.square(from_stored(codes, constants) - stored).sum()) / kept
    return result | {"held_out": float(len(sample.held)), "fitted": float(sample.count)}
