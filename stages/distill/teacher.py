"""The teacher: a checkpoint in eval mode on its device, checked against the data that it is to see."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cache.errors import ReskdError
from cache.manifest import FORMAT, Identity, Manifest
from stages.config import CacheConfig
from stages.data.decode import decoder_identity
from stages.data.shards import Dataset
from stages.distill.recalibrate import batch_norms
from stages.distill.targets import emit
from stages.models import VideoModel, model_stats, place
from stages.models.checkpoints import (
    ModelCard,
    first_difference,
    load_model,
    load_weights,
    read_checkpoint,
    weights_sha256,
)

RECALIBRATED = ".teacher.safetensors"  # inside the cache; hidden: it is there before the cache is


@dataclass(frozen=True)
class Teacher:
    """The net in eval mode on its device, and how it is run."""

    model: VideoModel
    size: int
    dtype: torch.dtype
    batch_size: int
    targets: tuple[str, ...]
    classifier: tuple[np.ndarray, np.ndarray] | None  # weight [D,K] and bias [K], float32; where features are cached
    pending: ModelCard | None = None  # under which it is to be saved, once its BatchNorm statistics are estimated

    def run(self, clips: torch.Tensor) -> dict[str, np.ndarray]:
        """uint8 [B,T,3,S,S] -> float32 arrays of its targets."""
        device = next(self.model.parameters()).device
        emitted = emit(self.model, clips.to(device, non_blocking=True), self.targets, self.dtype)
        return {name: value.cpu().numpy() for name, value in emitted.items()}


def load_teacher(config: CacheConfig, data: Dataset, device: torch.device) -> tuple[Teacher, Manifest]:
    """The teacher on `device`, and the manifest of the cache that it would make of `data`.

    With `bn: recalibrate` it is the one in the cache's folder, if that was made of the same weights, views and data;
    else it is `pending`, and the manifest doesn't know its weights yet.
    Raises ReskdError where its classes, in their order, aren't the data set's, its frames aren't the policy's, or
    there is nothing to recalibrate.
    """
    model, card = load_model(config.teacher.checkpoint)
    _check_classes(card.classes, data, config.teacher.checkpoint)
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
    targets, classifier = {"logits": {"codec": config.targets.logits, "width": len(data.classes)}}, None
    if config.targets.features is not None:
        stats, fc = model_stats(model, size), model.head.fc
        targets["features"] = {"codec": config.targets.features, "grid": list(stats.grid), "width": stats.width}
        classifier = fc.weight.detach().float().T.numpy(), fc.bias.detach().float().numpy()
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
        model, size, getattr(torch, dtype), config.teacher.batch_size, tuple(targets), classifier, pending
    )
    return teacher, Manifest(identity=identity_of_cache, views=config.views, packages=_packages())


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
        if stored.notes.get("recalibrated") == origin:
            load_weights(model, tensors, path)
            return {"base_weights_sha256": base, "weights_sha256": weights_sha256(model)}, None
    what = "of another teacher, policy or data" if path.exists() else "not there"
    unknown = {"base_weights_sha256": base, "weights_sha256": f"that of {path.name}, which is {what}"}
    return unknown, replace(card, notes={"recalibrated": origin, "views": config.views})


def _check_classes(classes: tuple[str, ...], data: Dataset, checkpoint: Path) -> None:
    if classes != tuple(data.classes):
        raise ReskdError(f"teacher {checkpoint} knows other classes than the data set {data.path} has "
                         f"({first_difference(classes, data.classes)}): prepare the data set in the teacher's order "
                         f"(prepare --class-order {checkpoint})")  # fmt: skip


def _packages() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "numpy", "zarr", "decord", "av", "pillow", "webdataset")
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {name: found[name] for name in names if name in found}
