"""The times of two maps. A student may keep more times of a clip than its teacher does, or fewer.

Each time of a map stands for an equal part of the clip. The map with more times is averaged over each part of the map with
fewer: its times are weighted by how much of them lies in the part. If one number divides the other, that is the mean of
neighbouring times.

So nothing is asked of a student that its teacher doesn't say. A student with more times is free to differ within a part; a
student with fewer gets the gradient that it would get if each of its times were compared with every time of the teacher in
it. Repeating or interpolating the map with fewer times would tell a student that nothing changes within a part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_common_times(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, T, ...], float32 or float64, at the times of the one that has fewer. Maps of equal times stay as they are."""
    times = min(student.shape[1], teacher.shape[1])
    return mean_over_parts(student, times), mean_over_parts(teacher, times)


def mean_over_parts(maps: Tensor, times: int) -> Tensor:
    """[B, T, ...] -> [B, times, ...], with times <= T: the mean over each of `times` equal parts of the clip."""
    length = maps.shape[1]
    if length == times:
        return maps
    if length % times == 0:
        return maps.unflatten(1, (times, -1)).mean(2)
    parts = []
    for part in range(times):  # in steps of 1 / (length * times) of the clip, so that all is whole numbers
        start, end = part * length, (part + 1) * length
        overlaps = [min(end, (t + 1) * times) - max(start, t * times) for t in range(length)]
        inside = [t for t, overlap in enumerate(overlaps) if overlap > 0]
        weights = torch.tensor([overlaps[t] / length for t in inside], dtype=maps.dtype, device=maps.device)
        taken = maps[:, inside[0] : inside[-1] + 1]
        parts.append((taken * weights.view(-1, *[1] * (maps.dim() - 2))).sum(1))  # no matmul: autocast would round it
    return torch.stack(parts, 1)


def describe_times(student: int, teacher: int) -> str | None:
    """A sentence for people about a student's and a teacher's numbers of times; None if they are equal."""
    if student == teacher:
        return None
    finer, coarser = ("student's", "teacher's") if student > teacher else ("teacher's", "student's")
    return (f"the student's map has {student} times, the teacher's {teacher}: the {finer} are averaged over the parts of the "
            f"clip that the {coarser} stand for")  # fmt: skip
