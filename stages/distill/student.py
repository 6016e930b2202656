"""What is trained: a video model, and beside it what only its distillation needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cache.reduction import Constants
from stages.config.schema import LossConfig
from stages.distill.losses import classify
from stages.models import VideoModel


class Answer(NamedTuple):
    """What the losses read of a student."""

    logits: Tensor  # [B,K] float32
    features: Tensor  # [B,T',h,w,d], in the channels of the targets where a loss compares the two
    class_map: Tensor | None = None  # [B,T',h,w,K] float32; None where no loss reads it


class Student(nn.Module):
    """All that has parameters in one forward, so that whatever wraps it (DDP, compile) sees each of them used.

    `model` is what is evaluated, averaged and exported. `adapter` maps every position of its map linearly to the
    channels of the targets: a 1x1 convolution that is trained (FitNets, Romero et al. 2015) where the teacher is of
    another width, the fixed projection onto the cache's basis where it isn't, None where the channels are the same or no
    loss compares features. It comes before the loss's interpolation, with which it commutes.
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


def build_student(
    model: VideoModel, losses: LossConfig, teacher_width: int | None, constants: Constants | None = None
) -> Student:
    """`model` with what `losses` need; `teacher_width` is D of the teacher's own map, None where there are no maps.

    `constants`: those of the cache; with a basis [D,d], d channels are compared. A trained adapter maps to them at once:
    with an orthonormal basis the gradient is that of an adapter to D channels followed by the projection.
    """
    width, class_map = model.head.fc.in_features, losses.logit_map_kl > 0
    basis = (constants or {}).get("basis")
    if losses.feature_mse == 0 or (width == teacher_width and basis is None):
        return Student(model, None, class_map)
    adapter = nn.Linear(width, teacher_width if basis is None else basis.shape[1])
    if width == teacher_width:
        with torch.no_grad():
            adapter.weight.copy_(torch.from_numpy(basis.T.copy()))
            adapter.bias.copy_(torch.from_numpy(-constants["mean"] @ basis))
        adapter.requires_grad_(False)
    return Student(model, adapter, class_map)
