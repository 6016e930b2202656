"""What a teacher emits, and how a student meets it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cache.errors import ReskdError
from cache.manifest import Manifest
from stages.config import LossConfig
from stages.data.join import Batch
from stages.distill import losses
from stages.distill.student import Answer
from stages.models import Output

# what each distillation term reads of the cache
TARGET_OF = {"logit_kl": "logits", "feature_mse": "features", "logit_map_kl": "features"}

Classifier = tuple[Tensor, Tensor]  # the teacher's: weight [K,D], as a linear layer has it, and bias [K]; float32


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
    classes, a feature map of another length in time. Grids and widths of maps may differ.
    """
    stored, needed = manifest.identity.targets, needed_targets(config)
    if manifest.identity.policy.num_frames != num_frames:
        raise ReskdError(
            f"the cache's views have {manifest.identity.policy.num_frames} frames, the student takes {num_frames}: "
            f"set model.num_frames to the cache's"
        )
    for name in needed:
        if name not in stored:
            raise ReskdError(f"the cache stores {sorted(stored)}, but the losses need {name!r}: set the weight of "
                             f"its term to 0, or cache it (targets.{name} of cache-teacher)")  # fmt: skip
    if "features" in needed:
        there, here = stored["features"]["grid"], list(output.features.shape[1:4])
        if there[0] != here[0]:
            terms = " and ".join(name for name in config.weights() if TARGET_OF.get(name) == "features")
            raise ReskdError(
                f"losses.{terms}: the cached map is {'×'.join(map(str, there))}, the student's "
                f"{'×'.join(map(str, here))}, of one clip; the times (first) must be equal: choose a student that "
                f"keeps as many of its {num_frames} frames as the teacher does, or set the weight of {terms} to 0"
            )
    reads_classes = config.logit_kl > 0 or config.logit_map_kl > 0
    if reads_classes and stored["logits"]["width"] != output.logits.shape[1]:
        raise ReskdError(f"the cache has logits of {stored['logits']['width']} classes, the student of "
                         f"{output.logits.shape[1]}: both must come from one class list")  # fmt: skip


def loss_terms(
    output: Answer, batch: Batch, config: LossConfig, classifier: Classifier | None = None
) -> dict[str, Tensor]:
    """Unweighted float32 scalars, one for each term of positive weight, means over the rows that it applies to.

    `classifier`: the teacher's, on the batch's device, for logit_map_kl. A row whose clip could not be decoded counts
    nowhere, an unlabelled one in the distillation terms only.
    """
    terms = {}
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
            teacher = losses.classify(batch.features, *classifier)
            terms[name] = losses.logit_map_kl(output.class_map, teacher, config.temperature, batch.usable)
        else:
            terms[name] = losses.feature_mse(output.features, batch.features, batch.usable)
    return terms
