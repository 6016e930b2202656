"""The teacher: a checkpoint in eval mode on its device, checked against the data that it is to see."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.errors import ReskdError
from cache.manifest import FORMAT, Identity, Manifest
from stages.config import CacheConfig
from stages.data.decode import decoder_identity
from stages.data.shards import Dataset
from stages.distill.targets import emit
from stages.models import VideoModel, model_stats, place
from stages.models.checkpoints import load_model, weights_sha256


@dataclass(frozen=True)
class Teacher:
    """The net in eval mode on its device, and how it is run."""

    model: VideoModel
    size: int
    dtype: torch.dtype
    batch_size: int
    targets: tuple[str, ...]

    def run(self, clips: torch.Tensor) -> dict[str, np.ndarray]:
        """uint8 [B,T,3,S,S] -> float32 arrays of its targets."""
        device = next(self.model.parameters()).device
        emitted = emit(self.model, clips.to(device, non_blocking=True), self.targets, self.dtype)
        return {name: value.cpu().numpy() for name, value in emitted.items()}


def load_teacher(config: CacheConfig, data: Dataset, device: torch.device) -> tuple[Teacher, Manifest]:
    """The teacher on `device`, and the manifest of the cache that it would make of `data`.

    Raises ReskdError where its classes, in their order, aren't the data set's, or its frames aren't the policy's.
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
    stats = model_stats(model, size)
    targets = {"logits": {"codec": config.targets.logits, "width": len(data.classes)}}
    if config.targets.features is not None:
        targets["features"] = {"codec": config.targets.features, "grid": list(stats.grid), "width": stats.width}
    identity_of_cache = Identity(
        format=FORMAT,
        teacher={
            "model": card.model.model_dump(mode="json"),
            "weights_sha256": weights_sha256(model),
            "size": size,
            "dtype": dtype,
            "batch_size": config.teacher.batch_size,
            "compile": config.teacher.compile,
        },
        decoder=decoder_identity(),
        policy=config.policy,
        shards=tuple(data.shards),
        classes=tuple(data.classes),
        targets=targets,
    )
    model = place(model, device).eval()
    if config.teacher.compile:
        model = torch.compile(model)
    teacher = Teacher(model, size, getattr(torch, dtype), config.teacher.batch_size, tuple(targets))
    return teacher, Manifest(identity=identity_of_cache, views=config.views, packages=_packages())


def _check_classes(classes: tuple[str, ...], data: Dataset, checkpoint: Path) -> None:
    if classes != tuple(data.classes):
        wrong = [i for i, (a, b) in enumerate(zip(classes, data.classes, strict=False)) if a != b]
        where = f"first at {wrong[0]}: {classes[wrong[0]]!r} and {data.classes[wrong[0]]!r}" if wrong else "in number"
        raise ReskdError(f"teacher {checkpoint} knows {len(classes)} classes, the data set {data.path} has "
                         f"{len(data.classes)}, and they differ {where}: prepare the data set with the teacher's order "
                         f"(prepare --classes FILE)")  # fmt: skip


def _packages() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "numpy", "zarr", "decord", "av", "pillow", "webdataset")
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {name: found[name] for name in names if name in found}
