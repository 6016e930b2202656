"""What a teacher emits, and how a student meets it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.reduction import Constants
from stages.config.schema import LossConfig
from stages.distill import losses
from stages.distill.student import Answer
from stages.models import Output
from stages.stream.clips import Batch

# what each distillation term reads of the cache
TARGET_OF = {"logit_kl": "logits", "feature_mse": "features", "logit_map_kl": "features"}


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a batch's targets mean, on the student's device."""

    whole: tuple[int, int, int] | None = None  # H, W, D of the teacher's own map; None where no features are read
    scale: Tensor | None = None  # [d] float32, of int8 codes
    offset: Tensor | None = None
    classifier: tuple[Tensor, Tensor] | None = None  # the teacher's: weight [K,d] as a linear layer has it, bias [K]

    def features(self, stored: Tensor) -> Tensor:
        """[B,T',g,g',d] float16 or int8 codes -> float32."""
        values = stored.float()
        return values if self.scale is None else values * self.scale + self.offset


def meaning_of(manifest: Manifest, constants: Constants, device: torch.device) -> Meaning:
    """That of a cache's targets; `constants` are those of its root."""
    maps = manifest.identity.targets.get("features")
    if maps is None:
        return Meaning()
    on = {name: torch.from_numpy(values).to(device) for name, values in constants.items()}
    classifier = (on["classifier"].T.contiguous(), on["classifier_bias"]) if "classifier" in on else None
    return Meaning(tuple(maps["map"][1:]), on.get("scale"), on.get("offset"), classifier)


def needed_targets(config: LossConfig) -> tuple[str, ...]:
    """Names of the cached targets which the weighted terms read."""
    return tuple(sorted({TARGET_OF[name] for name in config.weights() if name in TARGET_OF}))


@torch.inference_mode()
def emit(teacher: torch.nn.Module, clips: Tensor, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """One forward of the teacher (in eval mode) over uint8 clips [B,T,3,H,W].

    Returns float32 `logits` [B,K] and, where asked for, `features` [B,T',h,w,D], on the teacher's device.
    """
    with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = teacher(clips)
    return {name: getattr(output, name).float() for name in names}


def check_targets(manifest: Manifest, config: LossConfig, output: Output, num_frames: int) -> None:
    """Refuse, before training, a cache which can't serve this student.

    `output` is the student's for any one clip. Raises ReskdError: a target not stored, another number of frames or
    classes, a feature map of another length in time, one reduced to another grid than the student's. Other grids and
    widths of maps may differ.
    """
    stored, needed = manifest.identity.targets, needed_targets(config)
    if manifest.identity.policy.num_frames != num_frames:
        raise ReskdError(
            f"the cache's views have {manifest.identity.policy.num_frames} frames, the student takes {num_frames}: "
            f"set model.num_frames to the cache's"
        )
    for name in needed:
        if name not in stored:
            raise ReskdError(f"the cache stores {sorted(stored)}, but the losses need {name!r}: add it to the cache "
                             f"(cache-teacher again, with targets.{name}), or set the weight of its term to 0")  # fmt: skip
    if "features" in needed:
        there, here = stored["features"]["grid"], list(output.features.shape[1:4])
        if there[0] != here[0]:
            terms = " and ".join(name for name in config.weights() if TARGET_OF.get(name) == "features")
            raise ReskdError(
                f"losses.{terms}: the cached map is {'×'.join(map(str, there))}, the student's "
                f"{'×'.join(map(str, here))}, of one clip; the times (first) must be equal: choose a student that "
                f"keeps as many of its {num_frames} frames as the teacher does, or set the weight of {terms} to 0"
            )
        _check_grid(stored["features"], config, here)
    reads_classes = config.logit_kl > 0 or config.logit_map_kl > 0
    if reads_classes and stored["logits"]["width"] != output.logits.shape[1]:
        raise ReskdError(f"the cache has logits of {stored['logits']['width']} classes, the student of "
                         f"{output.logits.shape[1]}: both must come from one class list")  # fmt: skip


def _check_grid(maps: dict, config: LossConfig, here: list[int]) -> None:
    """A map reduced to one grid serves the students of that grid, and no loss that isn't quadratic in the map."""
    there, own = maps["grid"][1:], maps["map"][1:3]
    if there == own:
        return
    if config.logit_map_kl > 0:
        raise ReskdError(
            f"losses.logit_map_kl: the cached maps are reduced from {own[0]}×{own[1]} to {there[0]}×{there[1]}, which "
            "keeps the gradient of feature_mse alone: use that, or make a cache without targets.features.grid"
        )
    if there != here[1:]:
        raise ReskdError(
            f"losses.feature_mse: the cached maps are reduced to {there[0]}×{there[1]} for students of that grid, this "
            f"one's is {here[1]}×{here[2]}: choose its size so that it has that grid, or make a cache without "
            "targets.features.grid, which serves every student"
        )


def loss_terms(output: Answer, batch: Batch, config: LossConfig, meaning: Meaning) -> dict[str, Tensor]:
    """Unweighted float32 scalars, one for each term of positive weight, means over the rows that it applies to.

    A row whose clip could not be decoded counts nowhere, an unlabelled one in the distillation terms only.
    """
    terms = {}
    features = meaning.features(batch.features) if "features" in needed_targets(config) else None
    for name in config.weights():
        if name == "cross_entropy":
            labels = torch.where(batch.usable, batch.labels, -1)
            terms[name] = losses.cross_entropy(output.logits, labels, label_smoothing=config.label_smoothing)
        elif name == "binary_cross_entropy":
            mask = batch.usable & (batch.labels >= 0)
            terms[name] = losses.binary_cross_entropy(output.logits, batch.multi_hot, mask)
        elif name == "logit_kl":
            terms[name] = losses.logit_kl(output.logits, batch.logits, config.temperature, batch.usable)
        elif name == "logit_map_kl":
            teacher = losses.classify(features, *meaning.classifier)
            terms[name] = losses.logit_map_kl(output.class_map, teacher, config.temperature, batch.usable)
        else:
            terms[name] = losses.feature_mse(output.features, features, batch.usable, meaning.whole)
    return terms
