"""A student before its first step: its weights, and its config with all that was left to defaults filled in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from cache.errors import ReskdError
from cache.reduction import Constants
from cache.view import ViewPolicy
from stages.distill.check_targets import check_targets
from stages.distill.student import Student, build_student
from stages.models.architectures import build_model
from stages.models.checkpoints import initialise
from stages.models.grad_checkpointing import enable_grad_checkpointing
from stages.models.video_model import ModelOutput, VideoModel, model_stats
from stages.runtime.distributed import Ranks
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.stream.replay import Replay
from stages.student.config import TrainConfig
from stages.student.online_teacher import OnlineTeacher
from stages.student.state import torch_state


@dataclass(frozen=True)
class StudentSetup:
    """A student before its first step, with all that its config left to defaults filled in."""

    config: TrainConfig
    student: Student
    random: dict  # torch's generators after its weights were drawn
    gmacs: float


def set_up_student(
    config: TrainConfig, data: Dataset, replay: Replay | None, online: OnlineTeacher | None, ranks: Ranks
) -> StudentSetup:
    """Build a student and its first weights, which its seed alone decides."""
    torch.manual_seed(config.seed)
    model, config = _build(config, data, replay)
    if replay:
        check_targets(replay.manifest, config.losses, _shapes(model, config), config.model.num_frames)
    if config.grad_checkpointing:
        enable_grad_checkpointing(model, compiled=config.compile)
    student = _student(model, config, replay or online, replay.constants if replay else None, ranks)
    if not (config.losses.student_reads("logits") or config.losses.student_reads("class_map")):
        student.model.head.requires_grad_(False)
        console.print("[yellow]warning[/] no loss reads the logits: the features are trained, the classifier is not")
    gmacs = model_stats(model, config.size).gmacs
    if not ranks.first:
        torch.manual_seed(config.seed + ranks.rank)  # the same weights on every rank, but not the same dropout
    return StudentSetup(config, student, torch_state(), gmacs)


def evaluation_policy(policy: ViewPolicy) -> ViewPolicy:
    """The deterministic twin of a training policy: middle frames, no flip, and its own crop or the centre's."""
    crop = policy.crop if policy.crop in ("full", "center") else "center"
    return dataclasses.replace(policy, jitter=False, crop=crop, flip=0.0)


def _build(config: TrainConfig, data: Dataset, replay: Replay | None) -> tuple[VideoModel, TrainConfig]:
    """The model with its first weights, and the config with all that was left to defaults filled in."""
    classes = config.model.num_classes or len(data.classes)
    if classes != len(data.classes):
        raise ReskdError(f"model.num_classes is {classes}, {data.path} has {len(data.classes)} classes: leave it out")
    policy = config.policy if replay else config.policy or ViewPolicy(num_frames=config.model.num_frames)
    seen = policy or replay.manifest.identity.policy
    filled = {
        "data": config.data.model_copy(update={"views": replay.views if replay else None}),
        "model": config.model.model_copy(update={"num_classes": classes}),
        "policy": policy,
        "eval_policy": config.eval_policy or evaluation_policy(seen),
    }
    config = config.model_copy(update=filled)
    model = build_model(config.model, pretrained=config.init.source == "timm")
    if config.init.source == "checkpoint":
        console.print(initialise(model, config.model, config.init, data.classes), markup=False, soft_wrap=True)
    return model, config


def _student(
    model: VideoModel,
    config: TrainConfig,
    teacher: Replay | OnlineTeacher | None,
    constants: Constants | None,
    ranks: Ranks,
) -> Student:
    """The model with what its losses need beside it; said, where that is an adapter."""
    student = build_student(model, config.losses, teacher.width if teacher else None, constants)
    if student.adapter is not None and student.adapter.weight.requires_grad and ranks.first:
        console.print(f"the student's map has {student.adapter.in_features} channels, the targets' "
                      f"{student.adapter.out_features}: a 1×1 adapter between them is trained with the student and "
                      f"left out of its exported weights")  # fmt: skip
    return student


def _shapes(model: VideoModel, config: TrainConfig) -> ModelOutput:
    """The student's output for one clip, as shapes alone."""
    stats = model_stats(model, config.size)
    return ModelOutput(
        torch.empty(1, config.model.num_classes, device="meta"),
        torch.empty(1, *stats.grid, stats.width, device="meta"),
    )
