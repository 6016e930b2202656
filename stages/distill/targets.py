"""The targets as the losses read them: float32 numbers, from a cache or from a teacher in the loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.reduction import Constants
from stages.distill.config import LossConfig
from stages.distill.losses import LOSSES, UNLABELLED
from stages.distill.student import StudentOutput, classify
from stages.stream.batch import Batch

NO_CLASS_MAP = (
    "losses.logit_map_kl needs a teacher whose classifier takes the map as it is, and this teacher has a norm before its "
    "classifier (model.head_norm) or a pooling of its own (model.pooling: own), such as a class token: use feature_mse or "
    "logit_kl, and set the weight of logit_map_kl to 0"
)
SMALLEST_STD = 0.1  # of the root mean square of all channels' deviations


@dataclass(frozen=True)
class Targets:
    """What the losses read beside the student's output, on the student's device. Teacher's fields that no loss reads are None."""

    usable: Tensor  # bool [B], False where the clip could not be decoded
    label: Tensor  # int64 [B], -1 if there is none or the clip is not usable
    multi_hot: Tensor  # float32 [B,K]
    logits: Tensor | None = None  # float32 [B,K]
    features: Tensor | None = None  # float32 [B,T',g,g',d]
    class_map: Tensor | None = None  # float32 [B,T',g,g',K]
    channel_std: Tensor | None = None  # float32 [d], deviation of each channel of the features
    # H, W, D of the teacher's whole map, before it was reduced for storage
    map_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class TargetDecoder:
    """Makes float32 numbers of stored targets, on the student's device."""

    map_shape: tuple[int, int, int] | None = None  # H, W, D of the teacher's whole map; None without features
    scale: Tensor | None = None  # float32 [d] if features are stored as codes
    offset: Tensor | None = None  # likewise
    classifier: tuple[Tensor, Tensor] | None = None  # the teacher's weight [K,d] and bias [K]
    channel_std: Tensor | None = None  # float32 [d], deviation of each stored channel; None: not known

    def features(self, stored: Tensor) -> Tensor:
        """Stored features [B,T',g,g',d], float16 or codes, as float32."""
        values = stored.float()
        return values if self.scale is None else values * self.scale + self.offset

    def decode(self, batch: Batch, losses: LossConfig) -> Targets:
        """The targets that these losses read from a batch on the device.

        Raises ReskdError if they read class maps, and the teacher's head is not a classifier of the map alone.
        """
        if losses.teacher_reads("class_map") and self.classifier is None:
            raise ReskdError(NO_CLASS_MAP)
        maps = self.features(batch.features) if "features" in losses.stored_targets else None
        return Targets(
            usable=batch.usable,
            label=torch.where(batch.usable, batch.labels, UNLABELLED),
            multi_hot=batch.multi_hot,
            logits=batch.logits,
            features=maps,
            class_map=classify(maps, *self.classifier) if losses.teacher_reads("class_map") else None,
            channel_std=self.channel_std,
            map_shape=self.map_shape,
        )


def target_decoder(manifest: Manifest, constants: Constants, device: torch.device) -> TargetDecoder:
    """The decoder of a cache's targets. `constants` are the arrays at the cache's root."""
    maps = manifest.identity.targets.get("features")
    if maps is None:
        return TargetDecoder()
    on_device = {name: torch.from_numpy(values).to(device) for name, values in constants.items()}
    classifier = None
    if "classifier" in on_device:
        classifier = on_device["classifier"].T.contiguous(), on_device["classifier_bias"]
    channel_std = on_device.get("channel_std")
    if channel_std is not None:  # a channel that hardly varies in the sample may vary elsewhere
        usual = float(channel_std.square().mean().sqrt())
        channel_std = channel_std.clamp(min=max(SMALLEST_STD * usual, torch.finfo(torch.float32).tiny))
    return TargetDecoder(
        tuple(maps["map"][1:]), on_device.get("scale"), on_device.get("offset"), classifier, channel_std
    )


def loss_terms(output: StudentOutput, batch: Batch, config: LossConfig, decoder: TargetDecoder) -> dict[str, Tensor]:
    """The value of each loss in the sum, by name: float32 scalars without their weights.

    Each is a mean over rows. A clip that could not be decoded counts in no loss, an unlabelled clip only in losses that
    read the teacher's targets.
    """
    targets = decoder.decode(batch, config)
    return {name: LOSSES[name].compute(output, targets, config) for name in config.used}


@torch.inference_mode()
def teacher_outputs(
    teacher: torch.nn.Module, clips: Tensor, names: Iterable[str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """One forward of the teacher (in eval mode) over uint8 clips [B,T,3,H,W], in bfloat16 autocast if `dtype` is bfloat16.

    Returns the outputs `names` in float32 on the teacher's device: `logits` [B,K], `features` [B,T',h,w,D].
    """
    with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = teacher(clips)
    return {name: getattr(output, name).float() for name in names}
