"""The teacher: a checkpoint in eval mode on its device, checked against the data that it is to see."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cache.errors import ReskdError
from cache.group import load_manifest, read_constants
from cache.identity import Identity
from cache.manifest import FORMAT, Manifest
from cache.reduction import Constants, reduced_shape
from cache.store import METADATA
from cache.view import ViewPolicy
from stages.distill.targets import teacher_outputs
from stages.models.checkpoints import ModelCard, load_model, load_weights, read_checkpoint, weights_sha256
from stages.models.video_model import VideoModel, model_stats, place
from stages.shards.classes import check_classes
from stages.shards.dataset import Dataset
from stages.teacher.config import CacheConfig, FeaturesConfig
from stages.teacher.identity import in_todays_names
from stages.teacher.recalibrate import batch_norms
from stages.teacher.reduction import constants_on, reduce_features
from stages.video.decode import decoder_identity

RECALIBRATED = ".teacher.safetensors"  # inside the cache; hidden: it is there before the cache is


@dataclass(frozen=True)
class Teacher:
    """The net in eval mode on its device, and how it is run."""

    model: VideoModel
    size: int
    dtype: torch.dtype
    batch_size: int
    features: FeaturesConfig | None  # how its maps are stored
    grid: tuple[int, int, int] | None = None  # [T',g,g'] as stored
    constants: Constants | None = None  # by which they are; None: to be estimated
    pending: ModelCard | None = None  # under which it is to be saved, once its BatchNorm statistics are estimated

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        """The basis and the mean on its device: moved there once, not for each batch."""
        return constants_on(self.device, self.constants)

    def maps(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 [B,T,3,S,S] -> its maps as they are, float32 [B,T,H,W,D], on its device."""
        return teacher_outputs(self.model, clips.to(self.device, non_blocking=True), ("features",), self.dtype)[
            "features"
        ]

    def forward(self, clips: torch.Tensor, targets: Sequence[str]) -> dict[str, torch.Tensor]:
        """uint8 [B,T,3,S,S] -> float32 `targets` on its device; maps reduced as they are stored, but for their rounding."""
        emitted = teacher_outputs(self.model, clips.to(self.device, non_blocking=True), targets, self.dtype)
        if "features" in emitted:
            assert self.grid is not None and self.constants is not None
            emitted["features"] = reduce_features(emitted["features"], self.grid, self._tensors)
        return emitted

    def run(self, clips: torch.Tensor, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """What `forward` gives, waited for, as arrays."""
        return {name: value.cpu().numpy() for name, value in self.forward(clips, targets).items()}


def load_teacher(config: CacheConfig, data: Dataset, device: torch.device) -> tuple[Teacher, Manifest]:
    """The teacher on `device`, and the manifest of the cache that it would make of `data`.

    With `bn: recalibrate` it is the one in the cache's folder, if that was made of the same weights, views and data;
    else it is `pending`, and the manifest doesn't know its weights yet.
    Raises ReskdError where its classes, in their order, aren't the data set's, its frames aren't the policy's, or
    there is nothing to recalibrate.
    """
    model, card = load_model(config.teacher.checkpoint)
    check_classes(card.classes, data, config.teacher.checkpoint)
    if card.model.num_frames != config.policy.num_frames:
        raise ReskdError(f"teacher {config.teacher.checkpoint} takes {card.model.num_frames} frames, the policy draws "
                         f"{config.policy.num_frames}: set policy.num_frames={card.model.num_frames}")  # fmt: skip
    size = config.teacher.size or card.size
    dtype = config.teacher.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    settings = {"size": size, "dtype": dtype, "batch_size": config.teacher.batch_size}
    weights, pending = {"weights_sha256": weights_sha256(model)}, None
    if config.teacher.bn == "recalibrate":
        weights, pending = _recalibrated(model, card, config, data, settings)
    targets = {"logits": {"codec": config.targets.logits, "width": len(data.classes)}}
    identity_of_cache = Identity(
        format=FORMAT,
        teacher={
            "model": card.model.model_dump(mode="json"),
            **weights,
            **settings,
            "compile": config.teacher.compile,
            "bn": config.teacher.bn,
        },
        decoder=decoder_identity(),
        policy=config.policy,
        shards=tuple(data.shards),
        classes=tuple(data.classes),
        targets=targets,
    )
    model = place(model, device).eval()
    if config.teacher.compile and pending is None:
        model = torch.compile(model)
    teacher = Teacher(
        model, size, getattr(torch, dtype), config.teacher.batch_size, config.targets.features, pending=pending
    )
    wanted = Manifest(identity=identity_of_cache, views=config.views, packages=_packages())
    return (teacher, wanted) if config.targets.features is None else _with_maps(teacher, wanted, config)


def _with_maps(teacher: Teacher, wanted: Manifest, config: CacheConfig) -> tuple[Teacher, Manifest]:
    """What the maps are stored as. Constants that the cache (or `features.basis`) has are taken, and never estimated anew."""
    stats, asked = model_stats(plain(teacher.model), teacher.size), teacher.features
    time, height, width = stats.grid
    grid = reduced_shape(stats.grid, asked.time, asked.grid)
    settings = {
        "codec": asked.codec,
        "grid": grid,
        "width": asked.dims or stats.width,
        "map": [time, height, width, stats.width],
        "sample": asked.model_dump(include={"dims", "energy", "sample"}) if asked.estimated else None,
    }
    teacher = replace(teacher, grid=tuple(grid))
    wanted = with_targets(wanted, features=settings)
    if not asked.estimated:
        return with_constants(teacher, wanted, {})
    known, lost = _known_constants(config, wanted)
    if known is None:
        return teacher, wanted if lost is None else with_targets(wanted, features=lost)
    return with_constants(teacher, wanted, known)


def with_constants(teacher: Teacher, wanted: Manifest, constants: Constants) -> tuple[Teacher, Manifest]:
    """The teacher whose maps are reduced by `constants` (a basis, ranges), and the manifest that says so."""
    settings = dict(wanted.identity.targets["features"])
    if "basis" in constants:
        settings["width"] = constants["basis"].shape[1]
    digest = hashlib.sha256()
    for name in sorted(constants):
        digest.update(name.encode() + np.ascontiguousarray(constants[name], np.float32).tobytes())
    settings["constants_sha256"] = digest.hexdigest()
    return replace(teacher, constants=dict(constants)), with_targets(wanted, features=settings)


def root_arrays(teacher: Teacher) -> dict[str, np.ndarray]:
    """What lies at the root of its cache: the classifier of maps as they are stored, and the constants.

    With a basis a position's logits are y (basis' W) + (mean W + b): the classifier of y has [d,K] numbers.
    """
    if teacher.features is None:
        return {}
    fc, constants = plain(teacher.model).head.fc, teacher.constants
    weight, bias = (tensor.detach().float().cpu().numpy() for tensor in (fc.weight.T, fc.bias))
    if "basis" in constants:
        wide = weight.astype(np.float64)
        bias = (constants["mean"] @ wide + bias).astype(np.float32)
        weight = (constants["basis"].T @ wide).astype(np.float32)
    return {"classifier": weight, "classifier_bias": bias, **constants}


def with_targets(manifest: Manifest, **targets: dict) -> Manifest:
    """The manifest with these targets set."""
    return replace(manifest, identity=replace(manifest.identity, targets={**manifest.identity.targets, **targets}))


def _known_constants(config: CacheConfig, wanted: Manifest) -> tuple[Constants | None, dict | None]:
    """The basis and ranges that need no estimate, None where they do; and what the cache says of those that it has lost.

    Raises ReskdError for `features.basis` of another teacher, or of maps stored otherwise.
    """
    source = config.targets.features.basis or config.output
    if not (source / METADATA).exists() and config.targets.features.basis is None:
        return None, None
    stored = load_manifest(source)
    source_has, wants = _what_a_basis_goes_with(stored.identity), _what_a_basis_goes_with(wanted.identity)
    different = next((name for name in wants if source_has.get(name) != wants[name]), None)
    if different is not None:
        if config.targets.features.basis is None:
            return None, None  # `check_cache` says what differs, unless the cache has no features yet
        raise ReskdError(f"targets.features.basis {source}: {different} is {source_has.get(different)} there and "
                         f"{wants[different]} here: a basis goes with one teacher (weights, size, dtype) and one way of "
                         f"storing its maps; leave `basis` out")  # fmt: skip
    try:
        return read_constants(source, stored, ("basis", "mean", "scale", "offset")), None
    except ReskdError:
        if config.targets.features.basis is not None:
            raise
        return None, stored.identity.targets["features"]  # estimated again, which gives the same


def _what_a_basis_goes_with(identity: Identity) -> dict[str, Any]:
    """By name, the weights first: where they differ all else may."""
    maps = identity.targets.get("features", {})
    teacher = in_todays_names(identity.comparable())["teacher"]
    teacher = {"weights_sha256": teacher["weights_sha256"], **teacher}
    return {f"teacher.{name}": value for name, value in teacher.items()} | {
        f"targets.features.{name}": maps.get(name) for name in ("codec", "grid", "map", "sample")
    }


def plain(model: torch.nn.Module) -> VideoModel:
    """The model inside of what torch.compile makes of it."""
    return getattr(model, "_orig_mod", model)


def _recalibrated(
    model: VideoModel, card: ModelCard, config: CacheConfig, data: Dataset, settings: dict
) -> tuple[dict[str, str], ModelCard | None]:
    """Take the weights of the recalibrated teacher, where it is there already.

    Returns what the identity says of the weights, and the card to save the teacher under where it isn't there: its
    notes say what the statistics are of, which is what is compared. The views' number is noted only: it may grow.
    """
    if not batch_norms(model):
        raise ReskdError(f"teacher.bn: recalibrate: the teacher {config.teacher.checkpoint} ({card.model.arch}, "
                         f"{card.model.backbone}) has no BatchNorm statistics: set teacher.bn=running")  # fmt: skip
    base, path = weights_sha256(model), config.output / RECALIBRATED
    shards = json.dumps([astuple(entry) for entry in data.shards])
    origin = {
        "weights_sha256": base,
        "policy": config.policy.to_json(),
        "decoder": decoder_identity(),
        "shards_sha256": hashlib.sha256(shards.encode()).hexdigest(),
        **settings,
    }
    origin = json.loads(json.dumps(origin))  # tuples become lists, as they come back
    if path.exists():
        tensors, stored = read_checkpoint(path)
        made_of = stored.notes.get("recalibrated")
        if (config.output / METADATA).exists() and isinstance(made_of, dict):
            made_of = made_of | {"shards_sha256": origin["shards_sha256"]}  # a cache that grows keeps its teacher
        if isinstance(made_of, dict) and _with_defaults(made_of) == _with_defaults(origin):
            load_weights(model, tensors, path)
            return {"base_weights_sha256": base, "weights_sha256": weights_sha256(model)}, None
    what = "of another teacher, policy or data" if path.exists() else "not there"
    unknown = {"base_weights_sha256": base, "weights_sha256": f"that of {path.name}, which is {what}"}
    return unknown, replace(card, notes={"recalibrated": origin, "views": config.views})


def _with_defaults(origin: dict) -> dict:
    """The policy's absent keys at their defaults: an older version had fewer of them."""
    defaults = json.loads(json.dumps(asdict(ViewPolicy())))
    return {**origin, "policy": {**defaults, **origin.get("policy", {})}}


def _packages() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "numpy", "zarr", "decord", "av", "pillow", "webdataset")
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {name: found[name] for name in names if name in found}
