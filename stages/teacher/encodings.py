"""What ways of storing a teacher's maps cost, in bytes and in error, measured on maps that are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cache.codecs import CODECS, codec_of
from cache.group import compressed_bytes
from cache.identity import Identity
from cache.manifest import bytes_of_clip_view
from cache.reduction import reduce_maps, reduced_shape
from stages.teacher.config import FeaturesConfig
from stages.teacher.reduction import Sample, error_of, estimate

PARTS = {"int8": (2, 4, 8, 16), "int4": (8,)}  # of the channels, in a basis


@dataclass(frozen=True)
class Encoding:
    """A way of storing maps; `features` as the config has it, None: they aren't stored."""

    name: str
    features: FeaturesConfig | None

    @property
    def setting(self) -> str:
        """As `--set` takes it."""
        if self.features is None:
            return "targets.features=null"
        asked = self.features.model_dump(mode="json", exclude_defaults=True, exclude={"sample", "basis"})
        if not asked:
            return "targets.features=float16"
        return "targets.features={" + ", ".join(f"{k}: {v}" for k, v in asked.items()) + "}"


@dataclass(frozen=True)
class Price:
    """What an encoding costs: bytes of one clip·view with its view and logits, and shares as `error_of` has them.

    Without measured maps, bytes are those before zstd, and there is no error.
    """

    encoding: Encoding
    bytes: float
    constants: int  # bytes at the root, once
    error: Mapping[str, float] | None


@dataclass(frozen=True)
class Maps:
    """What a probe found: the stored views and what the teacher says of them."""

    views: Mapping[str, np.ndarray]  # frames, box, flip, valid: [n, ...]
    logits: np.ndarray  # float32 [n,K]
    features: torch.Tensor  # float32 [n,T,H,W,D]
    held: np.ndarray  # bool [n], those that errors are measured on


def candidates(
    whole: tuple[int, ...], configured: FeaturesConfig | None, grid: tuple[int, int] | None
) -> list[Encoding]:
    """Encodings of maps [T,H,W,D], about from large to small: raw, rounded, of fewer channels, of a student's grid, none.

    `configured` comes first where it isn't one of them; its `time` goes for all. `grid`: of the student's map; that of
    `configured` where not given. Raises ReskdError for a grid finer than the teacher's.
    """
    time, grid = (configured.time, grid or configured.grid) if configured else (None, grid)
    reduced_shape(whole[:3], time, grid)
    found = [Encoding(codec, FeaturesConfig(codec=codec, time=time)) for codec in CODECS["features"]]
    for of in (None, grid) if grid else (None,):
        there = "" if of is None else f", {of[0]}×{of[1]}"
        if of is not None:
            found.append(Encoding(f"int8{there}", FeaturesConfig(codec="int8", grid=of, time=time)))
        for codec, part in ((codec, part) for codec, parts in PARTS.items() for part in parts if whole[3] // part):
            asked = FeaturesConfig(codec=codec, dims=whole[3] // part, grid=of, time=time)
            found.append(Encoding(f"{codec}{there}, {asked.dims} dims", asked))
    found.append(Encoding("logits only", None))
    if own_of(configured) not in [encoding.features for encoding in found]:
        found.insert(0, Encoding("as configured", own_of(configured)))
    return found


def own_of(configured: FeaturesConfig | None) -> FeaturesConfig | None:
    """What is stored, whatever it is estimated on."""
    return configured and configured.model_copy(update={"sample": FeaturesConfig().sample, "basis": None})


def price_all(maps: Maps, encodings: list[Encoding], identity: Identity) -> list[Price]:
    """Measured: the maps are encoded, and compressed as in a cache. `identity` is that of the cache planned."""
    logits, whole = identity.targets["logits"], tuple(maps.features.shape[1:])
    small = {**maps.views, **codec_of("logits", logits["codec"]).encode(maps.logits, {})}
    each = sum(map(compressed_bytes, small.values())) / len(maps.logits)
    samples, prices = {}, []
    for encoding in encodings:
        asked = encoding.features
        if asked is None:
            prices.append(Price(encoding, each, 0, None))
            continue
        grid = tuple(reduced_shape(whole[:3], asked.time, asked.grid))
        if grid not in samples:
            samples[grid] = _sampled(maps, grid)
        sample, full = samples[grid]
        constants, kept = _constants(sample, full, asked), np.stack([*sample.fitted, *sample.held])
        reduced = reduce_maps(kept, {"grid": grid}, constants)
        stored = codec_of("features", asked.codec).encode(reduced, constants)["features"]
        classifier = 4 * (reduced.shape[-1] + 1) * logits["width"]
        root = classifier + sum(values.nbytes for values in constants.values())
        size = each + compressed_bytes(stored) / len(stored)
        prices.append(Price(encoding, size, root, error_of(sample, constants, asked.codec)))
    return prices


def bound_all(encodings: list[Encoding], identity: Identity, whole: tuple[int, ...]) -> list[Price]:
    """Unmeasured: bytes before zstd, which are the most that they can be (but for zstd's few bytes a chunk)."""
    prices = []
    for encoding in encodings:
        asked, targets = encoding.features, {"logits": identity.targets["logits"]}
        if asked is not None:
            grid = reduced_shape(whole[:3], asked.time, asked.grid)
            targets["features"] = {"codec": asked.codec, "grid": grid, "width": asked.dims or whole[3]}
        prices.append(Price(encoding, bytes_of_clip_view(replace(identity, targets=targets)), 0, None))
    return prices


def described_error(error: Mapping[str, float]) -> str:
    """In words, what `error_of` found, of what the loss sees."""
    on = f"{error['held_out']:.0f} maps that were held out" if error["held_out"] else "the maps that it was fitted to"
    return (f"on {on}: the basis keeps {100 * error['channels']:.2f} % of the energy, the grid {100 * error['grid']:.2f} %; "
            f"rounding is {100 * error['rounding']:.4f} % of the loss of a student that answers the mean")  # fmt: skip


def _sampled(maps: Maps, grid: tuple[int, int, int]) -> tuple[Sample, dict[str, np.ndarray]]:
    """The sample of maps on a grid, and its basis of half of the channels, of which every smaller one is the beginning."""
    sample = Sample(grid, moments=True)
    for features, held in zip(maps.features.split(16), np.split(maps.held, range(16, len(maps.held), 16)), strict=True):
        sample.add(features, held)
    width = maps.features.shape[4]
    return sample, estimate(sample, "int8", max(1, width // 2), None)


def _constants(sample: Sample, full: dict[str, np.ndarray], asked: FeaturesConfig) -> dict[str, np.ndarray]:
    if (
        asked.codec == "int8"
        and asked.energy is None
        and asked.dims is not None
        and asked.dims <= full["basis"].shape[1]
    ):
        cut = {name: full[name][..., : asked.dims] for name in ("basis", "scale", "offset")}
        return {"mean": full["mean"], **cut}
    return estimate(sample, asked.codec, asked.dims, asked.energy)
