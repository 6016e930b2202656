"""Load the teacher's checkpoint, check it against the data set, and describe the cache that it would make."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from dataclasses import asdict, astuple, replace

import torch

from cache.errors import ReskdError
from cache.identity import Identity
from cache.manifest import FORMAT, Manifest
from cache.store import METADATA
from cache.view import ViewPolicy
from stages.models.checkpoints import ModelCard, load_model, load_weights, read_checkpoint, weights_sha256
from stages.models.video_model import VideoModel, model_stats, teacher_to_device
from stages.runtime.distributed import has_bfloat16
from stages.shards.classes import check_classes
from stages.shards.dataset import Dataset
from stages.teacher.config import CacheConfig
from stages.teacher.constants import with_stored_maps
from stages.teacher.recalibrate import batch_norms
from stages.teacher.teacher import Teacher
from stages.video.decode import decoder_identity

RECALIBRATED = ".teacher.safetensors"  # in the cache's folder; hidden, because it is written before the cache


def load_teacher(config: CacheConfig, data: Dataset, device: torch.device) -> tuple[Teacher, Manifest]:
    """The teacher on `device`, and the manifest of the cache that it would make of `data`.

    With `bn: recalibrate` the weights are those of the recalibrated teacher in the cache's folder, if it was made from the
    same weights, views and data. Otherwise the teacher is `pending`: its new weights are not in the manifest yet.
    Raises ReskdError where logits are stored and the classes or their order differ from the data set's, the number of frames
    differs from the policy's, or the model has no BatchNorm to recalibrate.
    """
    model, card = load_model(config.teacher.checkpoint)
    if config.targets.logits is not None:
        check_classes(card.classes, data, config.teacher.checkpoint)
    if card.model.num_frames != config.policy.num_frames:
        raise ReskdError(f"teacher {config.teacher.checkpoint} takes {card.model.num_frames} frames, the policy draws "
                         f"{config.policy.num_frames}: set policy.num_frames={card.model.num_frames}")  # fmt: skip
    size, dtype = config.teacher.size or card.size, config.teacher.dtype
    if dtype == "auto":
        dtype = "bfloat16" if has_bfloat16(device) else "float32"
    model_stats(model, size)  # raises if it can't see pictures of this size
    settings = {"size": size, "dtype": dtype, "batch_size": config.teacher.batch_size}
    weights, pending = {"weights_sha256": weights_sha256(model)}, None
    if config.teacher.bn == "recalibrate":
        weights, pending = _load_recalibrated(model, card, config, data, settings)
    identity = _identity(config, data, card, weights, settings)
    model = teacher_to_device(model, device).eval()
    if config.teacher.compile and pending is None:
        model = torch.compile(model)
    features = config.targets.features
    teacher = Teacher(model, size, getattr(torch, dtype), config.teacher.batch_size, features, pending=pending)
    wanted = Manifest(identity=identity, views=config.views, packages=_package_versions())
    return (teacher, wanted) if features is None else with_stored_maps(teacher, wanted, config)


def _identity(config: CacheConfig, data: Dataset, card: ModelCard, weights: dict, settings: dict) -> Identity:
    """The cache's identity, without the settings of its maps."""
    return Identity(
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
        targets={"logits": {"codec": config.targets.logits, "width": len(data.classes)}}
        if config.targets.logits
        else {},
    )


def _load_recalibrated(
    model: VideoModel, card: ModelCard, config: CacheConfig, data: Dataset, settings: dict
) -> tuple[dict[str, str], ModelCard | None]:
    """Load the recalibrated teacher's weights into `model`, if the cache's folder has them.

    Returns the weights' part of the identity, and None. Without such weights, the second value is the card to save the
    teacher under. Its notes say what the statistics are estimated from, and a later run compares these notes. The number
    of views is noted but not compared: it may grow.
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
    origin = json.loads(json.dumps(origin))  # tuples become lists, as in the stored notes
    if path.exists():
        tensors, stored_card = read_checkpoint(path)
        stored_origin = stored_card.notes.get("recalibrated")
        if (config.output / METADATA).exists() and isinstance(stored_origin, dict):
            stored_origin = stored_origin | {
                "shards_sha256": origin["shards_sha256"]
            }  # a cache that grows keeps its teacher
        if isinstance(stored_origin, dict) and _with_defaults(stored_origin) == _with_defaults(origin):
            load_weights(model, tensors, path)
            return {"base_weights_sha256": base, "weights_sha256": weights_sha256(model)}, None
    fault = "made from another teacher, policy or data set" if path.exists() else "missing"
    unknown = {"base_weights_sha256": base, "weights_sha256": f"that of {path.name}, which is {fault}"}
    return unknown, replace(card, notes={"recalibrated": origin, "views": config.views})


def _with_defaults(origin: dict) -> dict:
    """Absent keys of the policy take their defaults: an older version had fewer keys."""
    defaults = json.loads(json.dumps(asdict(ViewPolicy())))
    return {**origin, "policy": {**defaults, **origin.get("policy", {})}}


def _package_versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "numpy", "zarr", "decord", "av", "pillow", "webdataset")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
