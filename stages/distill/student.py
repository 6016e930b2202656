"""The student: a video model, and the parts that only distillation needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import ReskdError
from cache.reduction import Constants
from stages.distill.config import LossConfig
from stages.distill.projector import build_projector
from stages.models.video_model import VideoModel


class StudentOutput(NamedTuple):
    """The student's output, as the losses read it."""

    logits: Tensor  # [B,K] float32
    features: Tensor  # [B,T',h,w,d]; in the channels of the targets if a loss reads it
    class_map: Tensor | None = None  # [B,T',h,w,K] float32; None if no loss reads it
    own_map: Tensor | None = None  # [B,T',h,w,D], the model's own features


class Student(nn.Module):
    """One forward uses all parameters, as the wrappers (DistributedDataParallel, compile) need it.

    `model` is what is evaluated, averaged and exported. `projector` maps its channels to those of the targets (see
    `projector.py`); None if the channels are compared as they are, or no loss compares them. The loss interpolates after
    the projector; for a linear one the other order would give the same.
    """

    def __init__(self, model: VideoModel, projector: nn.Module | None = None, with_class_map: bool = False):
        super().__init__()
        self.model, self.projector, self.with_class_map = model, projector, with_class_map

    def forward(self, clips: Tensor) -> StudentOutput:
        """Clips uint8 [B,T,3,H,W]."""
        logits, own_map = self.model(clips)
        head, class_map = self.model.head, None
        if self.with_class_map:
            class_map = classify(head.at_positions(own_map), head.fc.weight, head.fc.bias)
        features = own_map if self.projector is None else self.projector(own_map)
        return StudentOutput(logits, features, class_map, own_map)


def build_student(
    model: VideoModel, losses: LossConfig, teacher_width: int | None, constants: Constants | None = None
) -> Student:
    """A student of `model` with what `losses` need. `teacher_width` is D of the teacher's whole map, None without maps.

    `constants` are the arrays at the cache's root.
    Raises ReskdError if a loss reads class maps and the student's classifier doesn't take its map, and for
    `projector: none` at unequal widths.
    """
    with_class_map = losses.student_reads("class_map")
    if with_class_map and not model.head.takes_map:
        raise ReskdError("losses.logit_map_kl needs a student whose classifier takes the map: set model.pooling: mean, or the "
                         "weight of logit_map_kl to 0")  # fmt: skip
    if not losses.student_reads("features"):
        return Student(model, None, with_class_map)
    projector = build_projector(losses.projector, model.width, teacher_width, constants or {})
    return Student(model, projector, with_class_map)


def classify(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The class map of a feature map: the classifier (weight [K, D], bias [K]) at each position, without dropout.

    [B, T', h, w, D] -> [B, T', h, w, K], in float32 under autocast too (float64 stays).
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features.to(dtype), weight.to(dtype), bias.to(dtype))
