"""The table `LOSSES`, from which the rest of the program knows the losses.

The losses are pure functions in label_losses.py, logit_losses.py and map_losses.py. Each gives one number in float32: the
mean over the rows that have a target. Inputs of any float type become float32 first (float64 stays), so autocast changes
nothing. A row without a target (a clip that can't be decoded, or has no label) adds nothing to the value and the gradient,
even if its numbers are NaN. If no row has a target, the loss is exactly 0 and still has a gradient.

README.md beside this file shows how to add a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor

from stages.distill.label_losses import UNLABELLED, binary_cross_entropy, cross_entropy
from stages.distill.logit_losses import dist, logit_kl
from stages.distill.map_losses import feature_cosine, feature_mse, feature_nmse, feature_relation, logit_map_kl

if TYPE_CHECKING:
    from stages.distill.config import LossConfig
    from stages.distill.student import StudentOutput
    from stages.distill.targets import Targets


@dataclass(frozen=True)
class Loss:
    """What the rest of the program must know about a loss.

    compute: a function of the student's output, the targets and the config of the losses; it gives one number.
    student: the fields of `StudentOutput` that the loss reads. A student computes `class_map` only if a loss reads it, has
        a projector only if a loss reads `features`, and trains its classifier only if a loss reads a field of the logits.
    teacher: the teacher's fields of `Targets` that the loss reads: "logits", "features", "class_map", "channel_std"; none:
        labels alone.
    reduced_grid: whether the gradient is the same on maps that are reduced to the student's grid.
    compares_positions: whether it needs two positions of a map, or more.
    weight: the default weight; 0: the loss is left out.
    options: further keys of `losses` that the loss reads: name -> (type, pydantic's Field).
    """

    compute: Callable[[StudentOutput, Targets, LossConfig], Tensor]
    student: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    reduced_grid: bool = False
    compares_positions: bool = False
    weight: float = 0.0
    options: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


TEMPERATURE = {"temperature": (float, Field(1.0, gt=0, description="of logit_kl, dist and logit_map_kl"))}
SMOOTHING = {"label_smoothing": (float, Field(0.0, ge=0, lt=1, description="of cross_entropy"))}
STANDARDISE = {"standardise_logits": (bool, Field(False, description="logit_kl compares (z - mean) / deviation of each clip's "
               "logits, so their size is free"))}  # fmt: skip
RANDOM_LABEL = {"random_label": (bool, Field(False, description="cross_entropy takes one label of a clip that has several, "
                "drawn anew each epoch, as upstream does; without it such a clip is an error"))}  # fmt: skip

LOSSES = {
    "cross_entropy": Loss(
        lambda student, targets, o: cross_entropy(student.logits, targets.label, o.label_smoothing),
        student=("logits",),
        weight=1.0,
        options=SMOOTHING | RANDOM_LABEL,
    ),
    "binary_cross_entropy": Loss(
        lambda student, targets, o: binary_cross_entropy(
            student.logits, targets.multi_hot, targets.label != UNLABELLED
        ),
        student=("logits",),
    ),
    "logit_kl": Loss(
        lambda student, targets, o: logit_kl(
            student.logits, targets.logits, o.temperature, targets.usable, o.standardise_logits
        ),
        student=("logits",),
        teacher=("logits",),
        options=TEMPERATURE | STANDARDISE,
    ),
    "dist": Loss(
        lambda student, targets, o: dist(student.logits, targets.logits, o.temperature, targets.usable),
        student=("logits",),
        teacher=("logits",),
        options=TEMPERATURE,
    ),
    "feature_mse": Loss(
        lambda student, targets, o: feature_mse(student.features, targets.features, targets.usable, targets.map_shape),
        student=("features",),
        teacher=("features",),
        reduced_grid=True,
    ),
    "feature_nmse": Loss(
        lambda student, targets, o: feature_nmse(
            student.features, targets.features, targets.usable, targets.channel_std
        ),
        student=("features",),
        teacher=("features", "channel_std"),
    ),
    "feature_cosine": Loss(
        lambda student, targets, o: feature_cosine(student.features, targets.features, targets.usable),
        student=("features",),
        teacher=("features",),
    ),
    "feature_relation": Loss(
        lambda student, targets, o: feature_relation(student.own_map, targets.features, targets.usable),
        student=("own_map",),
        teacher=("features",),
        compares_positions=True,
    ),
    "logit_map_kl": Loss(
        lambda student, targets, o: logit_map_kl(student.class_map, targets.class_map, o.temperature, targets.usable),
        student=("class_map",),
        teacher=("class_map",),
        options=TEMPERATURE,
    ),
}
