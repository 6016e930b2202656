"""Probabilities along the time of a video, and the segments in which one class wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

AT_ONCE = 1024  # steps that are computed together
TOLERANCE = 1e-6  # seconds: rounding of sums of hops


@dataclass(frozen=True)
class Steps:
    """The time of a video in steps of one hop. The last step may be shorter."""

    borders: np.ndarray  # float64 [N+1], seconds
    probabilities: np.ndarray  # float32 [N,K]


@dataclass(frozen=True)
class Segment:
    """Steps on end in which one class wins."""

    start: float  # seconds
    end: float  # seconds
    label: int
    probability: float  # its mean over the steps


def steps_of(
    scores: np.ndarray, starts: np.ndarray, ends: np.ndarray, hop: float,
    averaged: Callable[[torch.Tensor], np.ndarray],
) -> Steps:  # fmt: skip
    """The probabilities of each step: the average of the windows that cover it whole.

    `scores`: float32 [W,D] of the windows, from `starts` to `ends` (seconds). `averaged`: turns means of scores, float64
    [n,D], into probabilities [n,K].
    """
    until = max(ends[-1] - TOLERANCE, hop / 2)  # the border 0 is there however short the video is
    borders = np.append(np.unique(np.minimum(np.arange(0, until, hop), ends[-1])), ends[-1])
    first = np.searchsorted(ends, borders[1:] - TOLERANCE)  # the first window that ends no sooner than the step
    last = np.searchsorted(starts, borders[:-1] + TOLERANCE, "right")  # behind the last one that begins no later
    first = np.minimum(first, last - 1)
    probabilities = None  # filled piece by piece: float64 values of all steps would be twice as large
    for i in range(0, len(first), AT_ONCE):
        covering = zip(first[i : i + AT_ONCE], last[i : i + AT_ONCE], strict=True)
        part = averaged(torch.from_numpy(np.stack([scores[a:b].mean(0, dtype=np.float64) for a, b in covering])))
        if probabilities is None:
            probabilities = np.empty((len(first), part.shape[1]), np.float32)
        probabilities[i : i + len(part)] = part
    return Steps(borders, probabilities)


def segments_of(steps: Steps, threshold: float, least: float) -> list[Segment]:
    """The segments in which one class wins with at least the probability `threshold`, and that last `least` seconds."""
    winner, best = steps.probabilities.argmax(1), steps.probabilities.max(1)
    winner = np.where(best >= threshold, winner, -1)
    changes = np.flatnonzero(np.diff(winner)) + 1
    segments = []
    for first, end in zip([0, *changes.tolist()], [*changes.tolist(), len(winner)], strict=True):
        start, stop = float(steps.borders[first]), float(steps.borders[end])
        if winner[first] >= 0 and stop - start >= least - TOLERANCE:
            segments.append(Segment(start, stop, int(winner[first]), float(best[first:end].mean())))
    return segments
