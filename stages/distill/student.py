"""The student: a video model, and the parts that only distillation needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import ReskdError
from cache.reduction import Constants
from stages.distill.config import LossConfig
from stages.models.video_model import VideoModel


class StudentOutput(NamedTuple):
    """The student's output, as the losses read it."""

    logits: Tensor  # [B,K] float32
    features: Tensor  # [B,T',h,w,d]; in the channels of the targets if a loss reads it
    class_map: Tensor | None = None  # [B,T',h,w,K] float32; None if no loss reads it


class Student(nn.Module):
    """One forward uses all parameters, as the wrappers (DistributedDataParallel, compile) need it.

    `model` is what is evaluated, averaged and exported. `adapter` is a linear map from the student's channels to those of
    the targets, the same at every position. If the teacher has another width, the adapter is trained (a 1x1 convolution:
    FitNets, Romero et al. 2015). If the widths are equal and the cache has a basis, the adapter is the fixed projection
    onto the basis. It is None if the channels are the same, or no loss reads features. The loss interpolates after the
    adapter; the other order would give the same.
    """

    def __init__(self, model: VideoModel, adapter: nn.Linear | None = None, with_class_map: bool = False):
        super().__init__()
        self.model, self.adapter, self.with_class_map = model, adapter, with_class_map

    def forward(self, clips: Tensor) -> StudentOutput:
        """Clips uint8 [B,T,3,H,W]."""
        logits, features = self.model(clips)
        head, class_map = self.model.head, None
        if self.with_class_map:
            class_map = classify(head.at_positions(features), head.fc.weight, head.fc.bias)
        return StudentOutput(logits, features if self.adapter is None else self.adapter(features), class_map)


def build_student(
    model: VideoModel, losses: LossConfig, teacher_width: int | None, constants: Constants | None = None
) -> Student:
    """A student of `model` with what `losses` need. `teacher_width` is D of the teacher's whole map, None without maps.

    `constants` are the arrays at the cache's root. If they have a basis [D,d], d channels are compared. A trained adapter
    maps to the d channels directly: the basis is orthonormal, so the gradient is the same as with an adapter to D channels
    and a projection after it.
    Raises ReskdError if a loss reads class maps, and the student's classifier doesn't take its map.
    """
    width, with_class_map = model.width, losses.student_reads("class_map")
    if with_class_map and not model.head.takes_map:
        raise ReskdError("losses.logit_map_kl needs a student whose classifier takes the map: set model.pooling: mean, or the "
                         "weight of logit_map_kl to 0")  # fmt: skip
    basis = (constants or {}).get("basis")
    if not losses.student_reads("features") or (width == teacher_width and basis is None):
        return Student(model, None, with_class_map)
    adapter = nn.Linear(width, teacher_width if basis is None else basis.shape[1])
    if width == teacher_width:
        with torch.no_grad():
            adapter.weight.copy_(torch.from_numpy(basis.T.copy()))
            adapter.bias.copy_(torch.from_numpy(-constants["mean"] @ basis))
        adapter.requires_grad_(False)
    return Student(model, adapter, with_class_map)


def classify(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The class map of a feature map: the classifier (weight [K, D], bias [K]) at each position, without dropout.

    [B, T', h, w, D] -> [B, T', h, w, K], in float32 under autocast too (float64 stays).
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features.to(dtype), weight.to(dtype), bias.to(dtype))
