"""The teacher's targets as the losses read them: numbers of a cache, or of a teacher in the loop, in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.manifest import Manifest
from cache.reduction import Constants
from stages.distill.config import LossConfig
from stages.distill.losses import LOSSES, UNLABELLED
from stages.distill.student import StudentOutput, classify
from stages.stream.batch import Batch


@dataclass(frozen=True)
class Targets:
    """What the losses read beside the student's output, on the student's device. Of the teacher: what a loss reads."""

    usable: Tensor  # bool [B], False where the clip could not be decoded
    label: Tensor  # int64 [B], -1 where there is none or the clip is not usable
    multi_hot: Tensor  # float32 [B,K]
    logits: Tensor | None = None  # float32 [B,K]
    features: Tensor | None = None  # float32 [B,T',g,g',d]
    class_map: Tensor | None = None  # float32 [B,T',g,g',K]
    whole: tuple[int, int, int] | None = None  # H, W, D of the teacher's own map, of which `features` are


@dataclass(frozen=True)
class TargetDecoder:
    """How stored targets become numbers, on the student's device."""

    whole: tuple[int, int, int] | None = None  # H, W, D of the teacher's own map; None where no features are stored
    scale: Tensor | None = None  # [d] float32, where features are stored as codes
    offset: Tensor | None = None
    classifier: tuple[Tensor, Tensor] | None = None  # the teacher's: weight [K,d] as a linear layer has it, bias [K]

    def features(self, stored: Tensor) -> Tensor:
        """[B,T',g,g',d] as stored, float16 or codes -> float32."""
        values = stored.float()
        return values if self.scale is None else values * self.scale + self.offset

    def decode(self, batch: Batch, losses: LossConfig) -> Targets:
        """What these losses read of a batch, which is on the device."""
        maps = self.features(batch.features) if "features" in losses.stored_targets else None
        return Targets(
            usable=batch.usable,
            label=torch.where(batch.usable, batch.labels, UNLABELLED),
            multi_hot=batch.multi_hot,
            logits=batch.logits,
            features=maps,
            class_map=classify(maps, *self.classifier) if losses.teacher_reads("class_map") else None,
            whole=self.whole,
        )


def target_decoder(manifest: Manifest, constants: Constants, device: torch.device) -> TargetDecoder:
    """That of a cache's targets. `constants` are the arrays at its root."""
    maps = manifest.identity.targets.get("features")
    if maps is None:
        return TargetDecoder()
    on_device = {name: torch.from_numpy(values).to(device) for name, values in constants.items()}
    classifier = None
    if "classifier" in on_device:
        classifier = on_device["classifier"].T.contiguous(), on_device["classifier_bias"]
    return TargetDecoder(tuple(maps["map"][1:]), on_device.get("scale"), on_device.get("offset"), classifier)


def loss_terms(output: StudentOutput, batch: Batch, config: LossConfig, decoder: TargetDecoder) -> dict[str, Tensor]:
    """Unweighted float32 scalars, one for each loss in the sum: means over the rows that the loss applies to.

    A row whose clip could not be decoded counts nowhere. A row without a label counts for the teacher's targets alone.
    """
    targets = decoder.decode(batch, config)
    return {name: LOSSES[name].compute(output, targets, config) for name in config.used}


@torch.inference_mode()
def teacher_outputs(
    teacher: torch.nn.Module, clips: Tensor, names: Iterable[str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """One forward of the teacher (in eval mode) over uint8 clips [B,T,3,H,W].

    Returns float32 `logits` [B,K] and, where asked for, `features` [B,T',h,w,D], on the teacher's device.
    """
    with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = teacher(clips)
    return {name: getattr(output, name).float() for name in names}
