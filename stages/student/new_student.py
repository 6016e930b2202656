"""A student before its first step: its first weights, and its config with the defaults filled in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.distill.check_targets import check_targets
from stages.distill.student import Student, build_student
from stages.distill.times import describe_times
from stages.models.architectures import build_model
from stages.models.grad_checkpointing import enable_grad_checkpointing
from stages.models.init_weights import initialise
from stages.models.video_model import ModelOutput, ModelStats, model_stats
from stages.runtime.distributed import Ranks
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.replay import Replay
from stages.student.config import ScheduleConfig, TrainConfig
from stages.student.online_teacher import OnlineTeacher, check_online
from stages.student.state import torch_state

WARMUP = 0.05  # of the epochs, by default, for AdamW


@dataclass(frozen=True)
class NewStudent:
    """A student before its first step."""

    config: TrainConfig  # with the defaults filled in: classes, views, policies
    student: Student  # on the CPU
    generators: dict  # state of torch's random generators after the first weights were drawn
    gmacs: float  # of the model, for one clip


def new_student(
    config: TrainConfig, data: Dataset, replay: Replay | None, online: OnlineTeacher | None, ranks: Ranks
) -> NewStudent:
    """Build a student and draw its first weights, which depend on its seed only.

    Raises ReskdError if the student doesn't fit the data set or the cache.
    """
    torch.manual_seed(config.seed)
    config = _with_defaults(config, data, replay)
    model = build_model(config.model, pretrained=config.init.source == "timm")
    if config.init.source == "checkpoint":
        console.print(initialise(model, config.model, config.init, data.classes), markup=False, soft_wrap=True)
    stats = model_stats(model, config.size)
    shapes = _output_shapes(stats, config)
    if replay:
        check_targets(replay.manifest, config.losses, shapes, config.model.num_frames)
    elif online:
        check_online(config.losses, online, list(shapes.features.shape[1:4]))
    if config.grad_checkpointing:
        enable_grad_checkpointing(model, compiled=config.compile)
    teacher = replay or online
    student = build_student(
        model, config.losses, teacher.width if teacher else None, replay.constants if replay else None
    )
    if ranks.first:
        _announce_projector(student)
        _announce_times(config, shapes.features.shape[1], replay, online)
    if not (config.losses.student_reads("logits") or config.losses.student_reads("class_map")):
        student.model.head.requires_grad_(False)
        for name in getattr(model.backbone, "pooling_only", ()):  # what its own pooling has before the classifier
            model.backbone.get_parameter(name).requires_grad_(False)
        console.print("[yellow]warning[/] no loss reads the logits: the features are trained, the classifier is not")
    if not ranks.first:
        torch.manual_seed(config.seed + ranks.rank)  # every rank has the same weights and its own dropout
    return NewStudent(config, student, torch_state(), stats.gmacs)


def evaluation_policy(policy: ViewPolicy) -> ViewPolicy:
    """A training policy made deterministic: middle frames, no flip, and its crop if that is "full", else the centre crop."""
    crop = policy.crop if policy.crop in ("full", "center") else "center"
    return dataclasses.replace(policy, jitter=False, crop=crop, flip=0.0)


def _with_defaults(config: TrainConfig, data: Dataset, replay: Replay | None) -> TrainConfig:
    """The config with everything filled in that it leaves to defaults: classes, views, policies and warm-up."""
    classes = config.model.num_classes or len(data.classes)
    if classes != len(data.classes):
        raise ReskdError(f"model.num_classes is {classes}, {data.path} has {len(data.classes)} classes: leave it out")
    policy = None if replay else config.policy or ViewPolicy(num_frames=config.model.num_frames)
    train_policy = policy or replay.manifest.identity.policy
    filled = {
        "data": config.data.model_copy(update={"views": replay.views if replay else None}),
        "model": config.model.model_copy(update={"num_classes": classes}),
        "policy": policy,
        "schedule": with_warmup(config),
        "eval_policy": config.eval_policy or evaluation_policy(train_policy),
    }
    return config.model_copy(update=filled)


def with_warmup(config: TrainConfig) -> ScheduleConfig:
    """The schedule with its warm-up. AdamW needs one: its first steps rest on the averages of few gradients."""
    schedule = config.schedule
    if schedule.warmup_epochs is not None:
        return schedule
    return schedule.model_copy(
        update={"warmup_epochs": WARMUP * schedule.epochs if config.optim.name == "adamw" else 0.0}
    )


def _announce_projector(student: Student) -> None:
    """Print the channels of a trained projector."""
    projector = student.projector
    if projector is not None and any(parameter.requires_grad for parameter in projector.parameters()):
        console.print(f"the student's map has {projector.in_features} channels, the targets' {projector.out_features}: a "
                      "projector between them is trained with the student and left out of its exported weights")  # fmt: skip


def _announce_times(config: TrainConfig, times: int, replay: Replay | None, online: OnlineTeacher | None) -> None:
    """Print how maps of other times than the student's are compared with them, if a loss compares maps."""
    if "features" not in config.losses.stored_targets:
        return
    teacher = replay.manifest.identity.targets["features"]["grid"][0] if replay else online.grid[0]
    if said := describe_times(times, teacher):
        console.print(said, highlight=False)


def _output_shapes(stats: ModelStats, config: TrainConfig) -> ModelOutput:
    """The model's output for one clip, as tensors without data."""
    return ModelOutput(
        torch.empty(1, config.model.num_classes, device="meta"),
        torch.empty(1, *stats.grid, stats.width, device="meta"),
    )
