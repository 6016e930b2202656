"""The losses: pure functions, and the table `LOSSES` from which the rest of the program knows them.

Each function gives one number in float32: the mean over the rows that have a target. Inputs of any float type become
float32 first (float64 stays), so autocast changes nothing. A row without a target (a clip that can't be decoded, or has
no label) adds nothing to the value and the gradient, even if its numbers are NaN. If no row has a target, the loss is
exactly 0 and still has a gradient.

README.md beside this file shows how to add a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cache.errors import ReskdError
from stages.distill.times import at_common_times

if TYPE_CHECKING:
    from stages.distill.config import LossConfig
    from stages.distill.student import StudentOutput
    from stages.distill.targets import Targets

UNLABELLED = -1


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of logits [B, K] with labels [B] int64, where -1 means unlabelled.

    With smoothing s the target is (1 - s) on the label plus s / K on every class.
    """
    per_row = F.cross_entropy(
        _at_least_float32(logits), labels, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )
    return _masked_mean(per_row, labels != UNLABELLED)


def binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of each class, mean over classes, for clips with several labels.

    Args:
        logits: [B, K].
        targets: [B, K] multi-hot.
        mask: [B] bool, True = labelled.

    Raises:
        ReskdError: the shapes differ.
    """
    _check_classes("labels", logits, targets)
    logits = _at_least_float32(logits)
    targets = targets.to(logits.dtype).masked_fill(~mask[:, None], 0)
    per_class = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _masked_mean(per_class.mean(1), mask)


def logit_kl(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over classes (Hinton et al. 2015); logits [B, K], mask [B].

    T^2 keeps the size of the gradient at every temperature.

    Raises:
        ReskdError: the shapes differ.
    """
    _check_classes("the teacher's logits", student, teacher)
    teacher = _at_least_float32(teacher).masked_fill(~mask[:, None], 0)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(_at_least_float32(student) / temperature, dim=1)
    per_row = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * _masked_mean(per_row, mask)


def feature_mse(
    student: Tensor, teacher: Tensor, mask: Tensor, map_shape: tuple[int, int, int] | None = None
) -> Tensor:
    """Mean squared error between a teacher's map and a student's map, which is resized bilinearly (upstream: weight 100).

    Args:
        student: [B, T, h, w, d]. Any grid: it is interpolated (align_corners False) to the grid g x g'. If T is not T', the
            map with more times is averaged to the times of the other (`times.py`), and T' below is the smaller one.
        teacher: [B, T', g, g', d], as it is stored: the whole map, or in a basis of d of the D channels, or reduced to the
            student's grid.
        mask: [B] bool, True = the row has a target.
        map_shape: H, W, D of the teacher's whole map; None: that of `teacher`. The squared error is taken on H x W
            positions, summed and divided by T' * H * W * D, so that a weight of this loss means the same for all grids and
            encodings. If g x g' is smaller than H x W, the error is interpolated: |U (s - z)|^2. With z = pinv(U) t it has
            the gradient of |U s - t|^2.

    Raises:
        ReskdError: d of the two differs.
    """
    if student.shape[4] != teacher.shape[4]:
        raise ReskdError(
            f"feature_mse: the student's map [T, h, w, D] = {list(student.shape[1:])} doesn't fit the teacher's "
            f"{list(teacher.shape[1:])}: D must be equal; give the student a map as wide as the teacher's"
        )
    height, width, channels = map_shape or teacher.shape[2:]
    student, teacher = at_common_times(_at_least_float32(student), _at_least_float32(teacher))
    resized = _resize(student, teacher.shape[2:4])
    error = torch.where(mask[:, None, None, None, None], resized - teacher, 0)
    error = _resize(error, torch.Size((height, width)))
    per_row = error.square().flatten(1).sum(1) / (error.shape[1] * height * width * channels)
    return _masked_mean(per_row, mask)


def logit_map_kl(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """T^2 * KL(teacher || student) at every position, summed over classes, mean over the teacher's positions.

    Args:
        student: class maps [B, T, h, w, K] of `classify`. Any grid: they are interpolated bilinearly to the teacher's.
            The map with more times is averaged to the times of the other: its logits are those of the mean features.
            To classify before the interpolation gives the same (its weights sum to 1) with less work: K channels at
            the low resolution are fewer numbers than D channels at the high one.
        teacher: class maps [B, T', H, W, K].
        temperature: T. With T = 2 and 400 classes, upstream's 200 * T^2 * KLDivLoss("mean") is 0.5 times this loss:
            KLDivLoss("mean") divides by the number of classes too.
        mask: [B] bool, True = the row has a target.

    Raises:
        ReskdError: K of the two differs.
    """
    if student.shape[4] != teacher.shape[4]:
        raise ReskdError(
            f"logit_map_kl: the student's class map [T, h, w, K] = {list(student.shape[1:])} doesn't fit the teacher's "
            f"{list(teacher.shape[1:])}: K must be equal; give the student the classes of the data set"
        )
    student, teacher = at_common_times(_at_least_float32(student), _at_least_float32(teacher))
    resized = _resize(student, teacher.shape[2:4])
    log_p = F.log_softmax(teacher.masked_fill(~mask[:, None, None, None, None], 0) / temperature, dim=-1)
    log_q = F.log_softmax(resized / temperature, dim=-1)
    per_position = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _masked_mean(per_position.flatten(1).mean(1), mask)


def _resize(maps: Tensor, grid: torch.Size) -> Tensor:
    """Interpolate maps [B, T, h, w, D] bilinearly to [B, T, *grid, D]."""
    if maps.shape[2:4] == grid:
        return maps
    images = maps.flatten(0, 1).permute(0, 3, 1, 2)
    images = F.interpolate(images, size=tuple(grid), mode="bilinear", align_corners=False)
    return images.permute(0, 2, 3, 1).unflatten(0, maps.shape[:2])


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _masked_mean(per_row: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B] over the rows of the mask; 0 if it has none. The host doesn't wait for the device."""
    return torch.where(mask, per_row, 0).sum() / mask.sum().clamp(min=1)


def _check_classes(target: str, logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ReskdError(
            f"the model's logits [B, K] = {list(logits.shape)} don't fit {target} {list(targets.shape)}: "
            "give the model as many classes (num_classes) as the data set and the cache have"
        )


@dataclass(frozen=True)
class Loss:
    """What the rest of the program must know about a loss.

    compute: a function of the student's output, the targets and the config of the losses; it gives one number.
    student: the fields of `StudentOutput` that the loss reads. A student computes `class_map` only if a loss reads it, has
        an adapter only if a loss reads `features`, and trains its classifier only if a loss reads another field.
    teacher: the teacher's fields of `Targets` that the loss reads: "logits", "features", "class_map"; none: labels alone.
    reduced_grid: whether the gradient is the same on maps that are reduced to the student's grid.
    weight: the default weight; 0: the loss is left out.
    options: further keys of `losses` that the loss reads: name -> (type, pydantic's Field).
    """

    compute: Callable[[StudentOutput, Targets, LossConfig], Tensor]
    student: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    reduced_grid: bool = False
    weight: float = 0.0
    options: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


TEMPERATURE = {"temperature": (float, Field(1.0, gt=0, description="of logit_kl and logit_map_kl"))}
SMOOTHING = {"label_smoothing": (float, Field(0.0, ge=0, lt=1, description="of cross_entropy"))}
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
        lambda student, targets, o: logit_kl(student.logits, targets.logits, o.temperature, targets.usable),
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
    "logit_map_kl": Loss(
        lambda student, targets, o: logit_map_kl(student.class_map, targets.class_map, o.temperature, targets.usable),
        student=("class_map",),
        teacher=("class_map",),
        options=TEMPERATURE,
    ),
}
