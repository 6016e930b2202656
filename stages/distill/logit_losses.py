"""Losses that compare the student's logits with the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.distill.label_losses import check_classes
from stages.distill.masked_mean import SMALLEST, at_least_float32, masked_mean, without_masked_rows

TEACHER = "the teacher's logits"


def logit_kl(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor, standardise: bool = False) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over classes (Hinton et al. 2015).

    T^2 keeps the size of the gradient at every temperature.

    Args:
        student, teacher: [B, K].
        mask: [B] bool, True = the row has a target.
        standardise: take (z - mean z) / (std z) of each row in place of its logits z, on both sides (Sun et al. 2024, "Logit
            Standardization in Knowledge Distillation"). The student then learns the order and the proportions of the
            teacher's logits, and is free in their size.

    Raises:
        ReskdError: the shapes differ.
    """
    check_classes(TEACHER, student, teacher)
    student, teacher = at_least_float32(student), without_masked_rows(at_least_float32(teacher), mask)
    if standardise:
        student, teacher = _standardised(student), _standardised(teacher)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    per_row = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * masked_mean(per_row, mask)


def dist(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """T^2 * ((1 - mean over clips of r(p_b, q_b)) + (1 - mean over classes of r(p_k, q_k))): DIST (Huang et al. 2022,
    "Knowledge Distillation from A Stronger Teacher"; there each half has its own weight, mostly 1 or 2 for both).

    p, q: the softmax of teacher and student at temperature T; p_b: one clip's classes; p_k: one class over the clips of the
    micro-batch; r: Pearson's correlation. With fewer than two clips that have a target, the second half is 0.

    Args:
        student, teacher: [B, K].
        mask: [B] bool, True = the row has a target.

    Raises:
        ReskdError: the shapes differ.
    """
    check_classes(TEACHER, student, teacher)
    teacher = without_masked_rows(at_least_float32(teacher), mask)
    p, q = F.softmax(teacher / temperature, dim=1), F.softmax(at_least_float32(student) / temperature, dim=1)
    of_classes = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
    over_classes = masked_mean(1 - F.cosine_similarity(*of_classes, dim=1, eps=SMALLEST), mask)
    of_clips = _centred_over_clips(p, mask), _centred_over_clips(q, mask)
    over_clips = (1 - F.cosine_similarity(*of_clips, dim=0, eps=SMALLEST)).mean()
    return temperature**2 * (over_classes + torch.where(mask.sum() > 1, over_clips, 0))


def _standardised(logits: Tensor) -> Tensor:
    """Each row of [B, K] with mean 0 and deviation 1. A deviation below 0.01 counts as 0.01: a fresh classifier may give equal
    logits, and their gradient must stay small."""
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(1, logits.shape[1] - 1)
    return centred / variance.clamp(min=1e-4).sqrt()


def _centred_over_clips(values: Tensor, mask: Tensor) -> Tensor:
    """[B, K] minus the mean of each column over the rows of the mask; other rows are 0."""
    values = without_masked_rows(values, mask)
    return without_masked_rows(values - values.sum(0) / mask.sum().clamp(min=1), mask)
