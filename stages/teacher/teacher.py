"""The teacher: a model in eval mode on its device, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from cache.reduction import Constants
from stages.distill.targets import teacher_outputs
from stages.models.checkpoints import ModelCard
from stages.models.video_model import VideoModel
from stages.teacher.config import FeaturesConfig
from stages.teacher.reduction import constants_on, reduce_features


@dataclass(frozen=True)
class Teacher:
    """A model in eval mode on its device, and how it is run."""

    model: VideoModel
    size: int  # px
    dtype: torch.dtype
    batch_size: int
    features: FeaturesConfig | None  # how its maps are stored
    grid: tuple[int, int, int] | None = None  # [T',g,g'] of the stored maps
    constants: Constants | None = None  # the constants of the stored maps; None: not estimated yet
    pending: ModelCard | None = None  # the card to save it under, once its BatchNorm statistics are estimated

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        """The basis and the mean on the teacher's device: moved once, not for each batch."""
        return constants_on(self.device, self.constants)

    def maps(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 [B,T,3,S,S] -> the maps before any reduction, float32 [B,T,H,W,D], on the teacher's device."""
        clips = clips.to(self.device, non_blocking=True)
        return teacher_outputs(self.model, clips, ("features",), self.dtype)["features"]

    def forward(self, clips: torch.Tensor, targets: Sequence[str]) -> dict[str, torch.Tensor]:
        """uint8 [B,T,3,S,S] -> float32 `targets` on the teacher's device; maps are reduced as for storage, but not rounded."""
        outputs = teacher_outputs(self.model, clips.to(self.device, non_blocking=True), targets, self.dtype)
        if "features" in outputs:
            assert self.grid is not None and self.constants is not None
            outputs["features"] = reduce_features(outputs["features"], self.grid, self._tensors)
        return outputs

    def run(self, clips: torch.Tensor, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """`forward`, as arrays on the CPU. Waits until they are computed."""
        return {name: value.cpu().numpy() for name, value in self.forward(clips, targets).items()}


def uncompiled(model: torch.nn.Module) -> VideoModel:
    """The model that torch.compile wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)
