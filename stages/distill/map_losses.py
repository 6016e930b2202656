"""Losses that compare the student's feature map with the teacher's.

Maps are [B, T, h, w, D]. A student's map of another grid is resized bilinearly to the teacher's (align_corners False). If T
is not T', the map with more times is averaged to the times of the other (`times.py`), and T' is the smaller number. `mask`
is bool [B], True = the row has a target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import ReskdError
from stages.distill.masked_mean import SMALLEST, at_least_float32, masked_mean, without_masked_rows
from stages.distill.times import at_common_times


def feature_mse(
    student: Tensor, teacher: Tensor, mask: Tensor, map_shape: tuple[int, int, int] | None = None
) -> Tensor:
    """Mean squared error between a teacher's map and a student's map (ResKD; upstream: weight 100).

    Args:
        student: [B, T, h, w, d].
        teacher: [B, T', g, g', d], as it is stored: the whole map, or in a basis of d of the D channels, or reduced to the
            student's grid.
        mask: [B].
        map_shape: H, W, D of the teacher's whole map; None: that of `teacher`. The squared error is taken on H x W
            positions, summed and divided by T' * H * W * D, so that a weight of this loss means the same for all grids and
            encodings. If g x g' is smaller than H x W, the error is interpolated: |U (s - z)|^2. With z = pinv(U) t it has
            the gradient of |U s - t|^2.

    Raises:
        ReskdError: d of the two differs.
    """
    height, width, channels = map_shape or teacher.shape[2:]
    error = _error("feature_mse", student, teacher, mask)
    error = resize(error, (height, width))
    per_row = error.square().flatten(1).sum(1) / (error.shape[1] * height * width * channels)
    return masked_mean(per_row, mask)


def feature_nmse(student: Tensor, teacher: Tensor, mask: Tensor, channel_std: Tensor) -> Tensor:
    """`feature_mse` with each channel divided by its deviation: mean over T' * H * W * d of ((U s - t) / std)^2.

    A student that always gives the teacher's mean has 1, whatever the size of the teacher's features. (Others normalise both
    sides by their batch: Miles and Mikolajczyk 2024, "Understanding the Role of the Projector in Knowledge Distillation".)

    Args:
        student, mask: as in `feature_mse`. teacher: on its whole grid.
        channel_std: [d], the deviation of each stored channel over the teacher's positions; all positive.

    Raises:
        ReskdError: d of the two differs.
    """
    error = _error("feature_nmse", student, teacher, mask) / channel_std
    return masked_mean(error.square().flatten(1).mean(1), mask)


def feature_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the two channel vectors at a position, mean over the teacher's positions (PEFD, Chen et al. 2022).

    In a basis, the vectors are those about the sample's mean. A vector of zeros has cosine 0.

    Args:
        student: [B, T, h, w, d]. teacher: [B, T', H, W, d], not reduced to a smaller grid. mask: [B].

    Raises:
        ReskdError: d of the two differs.
    """
    _check_channels("feature_cosine", student, teacher)
    student, teacher = at_common_times(at_least_float32(student), at_least_float32(teacher))
    teacher = without_masked_rows(teacher, mask)
    cosine = F.cosine_similarity(resize(student, teacher.shape[2:4]), teacher, dim=-1, eps=SMALLEST)
    return masked_mean((1 - cosine).flatten(1).mean(1), mask)


def feature_relation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of the similarities of positions, mean over all pairs of a clip's T * h * w positions.

    The similarity of two positions is the cosine of their channel vectors about the clip's mean vector. The two nets may have
    any widths: a net is only compared with itself. (Within a batch: Tung and Mori 2019, "Similarity-Preserving Knowledge
    Distillation"; over positions: the Gram matrices of Siméoni et al. 2025, DINOv3.)

    Args:
        student: [B, T, h, w, D]: its own map. teacher: [B, T', H, W, d]. Each is averaged to the smaller of both heights and
            widths. mask: [B].
    """
    student, teacher = at_common_times(at_least_float32(student), at_least_float32(teacher))
    teacher = without_masked_rows(teacher, mask)
    grid = tuple(min(a, b) for a, b in zip(student.shape[2:4], teacher.shape[2:4], strict=True))
    student, teacher = _averaged(student, grid), _averaged(teacher, grid)
    return masked_mean((_similarities(student) - _similarities(teacher)).square().mean((1, 2)), mask)


def logit_map_kl(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """T^2 * KL(teacher || student) at every position, summed over classes, mean over the teacher's positions (ResKD, Swin).

    Args:
        student: class maps [B, T, h, w, K] of `classify`. To classify before the interpolation gives the same (its weights
            sum to 1) with less work: K channels at the low resolution are fewer numbers than D channels at the high one.
            A mean of times is that of the logits, which are the logits of the mean features.
        teacher: class maps [B, T', H, W, K].
        temperature: T. With T = 2 and 400 classes, upstream's 200 * T^2 * KLDivLoss("mean") is 0.5 times this loss:
            KLDivLoss("mean") divides by the number of classes too.
        mask: [B].

    Raises:
        ReskdError: K of the two differs.
    """
    if student.shape[4] != teacher.shape[4]:
        raise ReskdError(
            f"logit_map_kl: the student's class map [T, h, w, K] = {list(student.shape[1:])} doesn't fit the teacher's "
            f"{list(teacher.shape[1:])}: K must be equal; give the student the classes of the data set"
        )
    student, teacher = at_common_times(at_least_float32(student), at_least_float32(teacher))
    log_p = F.log_softmax(without_masked_rows(teacher, mask) / temperature, dim=-1)
    log_q = F.log_softmax(resize(student, teacher.shape[2:4]) / temperature, dim=-1)
    per_position = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return temperature**2 * masked_mean(per_position.flatten(1).mean(1), mask)


def resize(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate maps [B, T, h, w, D] bilinearly to [B, T, *grid, D]."""
    return _on_pictures(maps, grid, mode="bilinear", align_corners=False)


def _error(loss: str, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """U s - t on the teacher's grid, at common times; 0 in the rows outside the mask."""
    _check_channels(loss, student, teacher)
    student, teacher = at_common_times(at_least_float32(student), at_least_float32(teacher))
    difference = resize(student, teacher.shape[2:4]) - teacher
    return torch.where(mask[:, None, None, None, None], difference, 0)


def _check_channels(loss: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape[4] != teacher.shape[4]:
        raise ReskdError(
            f"{loss}: the student's map [T, h, w, D] = {list(student.shape[1:])} doesn't fit the teacher's "
            f"{list(teacher.shape[1:])}: D must be equal; give the student a map as wide as the teacher's"
        )


def _averaged(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [B, T, h, w, D] on a grid that is no finer: means over its cells."""
    return _on_pictures(maps, grid, mode="area")


def _on_pictures(maps: Tensor, grid: tuple[int, int], **how) -> Tensor:
    """`F.interpolate` of maps [B, T, h, w, D] to [B, T, *grid, D]."""
    if tuple(maps.shape[2:4]) == tuple(grid):
        return maps
    pictures = maps.flatten(0, 1).permute(0, 3, 1, 2)
    return F.interpolate(pictures, size=tuple(grid), **how).permute(0, 2, 3, 1).unflatten(0, maps.shape[:2])


def _similarities(maps: Tensor) -> Tensor:
    """[B, N, N]: the cosines of the N = T * h * w positions of each clip, about the clip's mean vector."""
    positions = maps.flatten(1, 3)
    positions = F.normalize(positions - positions.mean(1, keepdim=True), dim=-1, eps=SMALLEST)
    with torch.autocast(positions.device.type, enabled=False):  # it would round the products to bfloat16
        return positions @ positions.transpose(1, 2)
