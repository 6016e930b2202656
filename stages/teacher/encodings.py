"""What each encoding of a teacher's maps costs, in bytes and in error, measured on the maps of a probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cache.arrays import compressed_bytes
from cache.codecs import CODECS, codec_of
from cache.identity import Identity
from cache.manifest import bytes_of_clip_view
from cache.reduction import reduce_maps, reduced_shape
from stages.teacher.config import FeaturesConfig
from stages.teacher.hadamard import has_hadamard
from stages.teacher.reduction import Sample, encoding_error, estimate_constants

BASIS_FRACTIONS = {"int8": (2, 4, 8, 16), "int4": (8,)}  # by codec: a basis of 1/2, 1/4, ... of the channels
TURNED = "int4"  # the codec whose bases are offered turned, too: its steps are few
TURNED_FROM = 4  # dims; a turn of fewer changes little


@dataclass(frozen=True)
class Encoding:
    """A way to store maps; `features` as in the config, None: maps are not stored."""

    name: str
    features: FeaturesConfig | None

    @property
    def setting(self) -> str:
        """The argument of `--set` that chooses this encoding."""
        if self.features is None:
            return "targets.features=null"
        values = self.features.model_dump(mode="json", exclude_defaults=True, exclude={"sample", "basis"})
        if not values:
            return "targets.features=float16"
        return "targets.features={" + ", ".join(f"{k}: {v}" for k, v in values.items()) + "}"


@dataclass(frozen=True)
class Price:
    """What an encoding costs: bytes of one clip·view (its view, logits and map), and the shares of `encoding_error`.

    Without measured maps, the bytes are those before zstd, and `error` is None.
    """

    encoding: Encoding
    bytes: float
    constants: int  # bytes at the cache's root, once
    error: Mapping[str, float] | None


@dataclass(frozen=True)
class ProbeOutput:
    """The views of a probe, and the teacher's outputs for them."""

    views: Mapping[str, np.ndarray]  # frames, box, flip, valid: [n, ...]
    logits: np.ndarray  # float32 [n,K]
    features: torch.Tensor  # float32 [n,T,H,W,D]
    held_out: np.ndarray  # bool [n], the maps that errors are measured on


def candidates(
    shape: tuple[int, ...], configured: FeaturesConfig | None, grid: tuple[int, int] | None
) -> list[Encoding]:
    """Encodings of maps [T,H,W,D] = `shape`, roughly from large to small: raw, rounded, fewer channels, a grid, no maps.

    `configured` comes first where it isn't among them; its `time` holds for all. `grid`: the student's; None: that of
    `configured`. Raises ReskdError for a grid finer than the teacher's.
    """
    time, grid = (configured.time, grid or configured.grid) if configured else (None, grid)
    reduced_shape(shape[:3], time, grid)
    encodings = [Encoding(codec, FeaturesConfig(codec=codec, time=time)) for codec in CODECS["features"]]
    for stored_grid in (None, grid) if grid else (None,):
        suffix = "" if stored_grid is None else f", {stored_grid[0]}×{stored_grid[1]}"
        if stored_grid is not None:
            encodings.append(Encoding(f"int8{suffix}", FeaturesConfig(codec="int8", grid=stored_grid, time=time)))
        parts = ((codec, part) for codec, parts in BASIS_FRACTIONS.items() for part in parts if shape[3] // part)
        for codec, part in parts:
            features = FeaturesConfig(codec=codec, dims=shape[3] // part, grid=stored_grid, time=time)
            encodings.append(Encoding(f"{codec}{suffix}, {features.dims} dims", features))
            if codec == TURNED and features.dims >= TURNED_FROM and has_hadamard(features.dims):
                turned = features.model_copy(update={"rotate": "hadamard"})
                encodings.append(Encoding(f"{codec}{suffix}, {features.dims} dims turned", turned))
    encodings.append(Encoding("logits only", None))
    settings = encoding_settings(configured)
    if settings not in [encoding.features for encoding in encodings]:
        encodings.insert(0, Encoding("as configured", settings))
    return encodings


def encoding_settings(configured: FeaturesConfig | None) -> FeaturesConfig | None:
    """The config with `sample` and `basis` at their defaults: they say what is estimated on, not how maps are stored."""
    return configured and configured.model_copy(update={"sample": FeaturesConfig().sample, "basis": None})


def measure_prices(output: ProbeOutput, encodings: list[Encoding], identity: Identity) -> list[Price]:
    """Encode and compress the probe's maps as a cache does. `identity`: that of the planned cache."""
    logits, shape = identity.targets.get("logits"), tuple(output.features.shape[1:])
    answers = codec_of("logits", logits["codec"]).encode(output.logits, {}) if logits else {}
    small = {**output.views, **answers}
    without_map = sum(map(compressed_bytes, small.values())) / len(output.logits)
    samples, prices = {}, []
    for encoding in encodings:
        features = encoding.features
        if features is None:
            prices.append(Price(encoding, without_map, 0, None))
            continue
        grid = tuple(reduced_shape(shape[:3], features.time, features.grid))
        if grid not in samples:
            samples[grid] = _sample(output, grid)
        sample, half_basis = samples[grid]
        constants, kept = _constants(sample, half_basis, features), np.stack([*sample.fitted, *sample.held_out])
        reduced = reduce_maps(kept, {"grid": grid}, constants)
        stored = codec_of("features", features.codec).encode(reduced, constants)["features"]
        classifier = 4 * (reduced.shape[-1] + 1) * logits["width"] if logits else 0
        root = classifier + sum(values.nbytes for values in constants.values())
        size = without_map + compressed_bytes(stored) / len(stored)
        prices.append(Price(encoding, size, root, encoding_error(sample, constants, features.codec)))
    return prices


def bound_prices(encodings: list[Encoding], identity: Identity, shape: tuple[int, ...]) -> list[Price]:
    """Prices without a probe: bytes before zstd, an upper bound (zstd adds at most a few bytes to a chunk)."""
    prices = []
    for encoding in encodings:
        features, targets = encoding.features, {n: s for n, s in identity.targets.items() if n == "logits"}
        if features is not None:
            grid = reduced_shape(shape[:3], features.time, features.grid)
            targets["features"] = {"codec": features.codec, "grid": grid, "width": features.dims or shape[3]}
        prices.append(Price(encoding, bytes_of_clip_view(replace(identity, targets=targets)), 0, None))
    return prices


def describe_error(error: Mapping[str, float]) -> str:
    """The result of `encoding_error` in words."""
    maps = f"{error['held_out']:.0f} held-out maps" if error["held_out"] else "the maps that it was fitted to"
    return (f"on {maps}: the basis keeps {100 * error['channels']:.2f} % of the energy, the grid {100 * error['grid']:.2f} %; "
            f"rounding is {100 * error['rounding']:.4f} % of the loss of a student that predicts the mean")  # fmt: skip


def _sample(output: ProbeOutput, grid: tuple[int, int, int]) -> tuple[Sample, dict[str, np.ndarray]]:
    """The sample of maps on a grid, and its basis of half of the channels. Every smaller basis is a part of that one."""
    sample, held_out = Sample(grid, moments=True), output.held_out
    for features, held in zip(output.features.split(16), np.split(held_out, range(16, len(held_out), 16)), strict=True):
        sample.add(features, held)
    width = output.features.shape[4]
    return sample, estimate_constants(sample, "int8", max(1, width // 2), None)


def _constants(sample: Sample, half_basis: dict[str, np.ndarray], features: FeaturesConfig) -> dict[str, np.ndarray]:
    """The constants of an encoding; where they are a part of `half_basis`, without a new estimate."""
    dims = features.dims
    cut = features.codec == "int8" and features.energy is None and dims is not None and features.rotate is None
    if cut and dims <= half_basis["basis"].shape[1]:
        part = {name: half_basis[name][..., :dims] for name in ("basis", "scale", "offset")}
        return {"mean": half_basis["mean"], **part}
    return estimate_constants(sample, features.codec, dims, features.energy, features.rotate)
