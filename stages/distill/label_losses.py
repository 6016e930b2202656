"""Losses that read the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cache.errors import ReskdError
from stages.distill.masked_mean import at_least_float32, masked_mean, without_masked_rows

UNLABELLED = -1


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of logits [B, K] with labels [B] int64, where -1 means unlabelled.

    With smoothing s the target is (1 - s) on the label plus s / K on every class.
    """
    per_row = F.cross_entropy(
        at_least_float32(logits), labels, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )
    return masked_mean(per_row, labels != UNLABELLED)


def binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of each class, mean over classes, for clips with several labels.

    Args:
        logits: [B, K].
        targets: [B, K] multi-hot.
        mask: [B] bool, True = labelled.

    Raises:
        ReskdError: the shapes differ.
    """
    check_classes("labels", logits, targets)
    logits = at_least_float32(logits)
    targets = without_masked_rows(targets.to(logits.dtype), mask)
    per_class = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return masked_mean(per_class.mean(1), mask)


def check_classes(target: str, logits: Tensor, targets: Tensor) -> None:
    """Raise ReskdError if the logits have another number of rows or classes than their target, whose name is `target`."""
    if logits.shape != targets.shape:
        raise ReskdError(
            f"the model's logits [B, K] = {list(logits.shape)} don't fit {target} {list(targets.shape)}: "
            "give the model as many classes (num_classes) as the data set and the cache have"
        )
