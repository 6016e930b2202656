"""What is trained: a video model, and beside it what only its distillation needs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from stages.config import LossConfig
from stages.distill.losses import classify
from stages.models import VideoModel


class Answer(NamedTuple):
    """What the losses read of a student."""

    logits: Tensor  # [B,K] float32
    features: Tensor  # [B,T',h,w,D], as wide as the teacher's where a loss compares the two
    class_map: Tensor | None = None  # [B,T',h,w,K] float32; None where no loss reads it


class Student(nn.Module):
    """All that has parameters in one forward, so that whatever wraps it (DDP, compile) sees each of them used.

    `model` is what is evaluated, averaged and exported. `adapter` maps every position of its map linearly to the
    teacher's width (a 1x1 convolution; FitNets, Romero et al. 2015); None where the widths agree or no loss compares
    features. It comes before the loss's interpolation, with which it commutes.
    """

    def __init__(self, model: VideoModel, adapter: nn.Linear | None = None, class_map: bool = False):
        super().__init__()
        self.model, self.adapter, self.class_map = model, adapter, class_map

    def forward(self, clips: Tensor) -> Answer:
        """Clips uint8 [B,T,3,H,W]."""
        logits, features = self.model(clips)
        fc = self.model.head.fc
        class_map = classify(features, fc.weight, fc.bias) if self.class_map else None
        return Answer(logits, features if self.adapter is None else self.adapter(features), class_map)


def build_student(model: VideoModel, losses: LossConfig, teacher_width: int | None) -> Student:
    """`model` with what `losses` need; `teacher_width` is that of the cached maps, None where there are none."""
    width = model.head.fc.in_features
    adapted = losses.feature_mse > 0 and teacher_width != width
    adapter = nn.Linear(width, teacher_width) if adapted else None
    return Student(model, adapter, class_map=losses.logit_map_kl > 0)
