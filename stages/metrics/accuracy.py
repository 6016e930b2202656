"""Accuracy of scored videos: top-k, mean class accuracy, mAP, the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class ScoredVideos:
    """A model's answers for the videos that are labelled and could be decoded, in the data set's order."""

    videos: np.ndarray  # int64 [N,2]: shard, row
    probabilities: np.ndarray  # float64 [N,K]
    truth: np.ndarray  # bool [N,K]: all labels of each video
    failed: int  # videos that could not be decoded
    unlabelled: int  # videos that could be decoded, but have no label

    @property
    def has_several_labels(self) -> bool:
        """Whether any video has several labels."""
        return bool((self.truth.sum(1) > 1).any())

    @cached_property
    def best(self) -> np.ndarray:
        """The five best classes of each video, int64 [N,5], best first. Of equal classes, the lowest comes first, as in
        mmaction2's mean class accuracy."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")[:, :5]


def measure(scored: ScoredVideos) -> dict[str, float | int | str]:
    """In percent "top1", "top5", "mean_class" and "map"; the numbers of videos "clips" (scored), "failed" and "unlabelled";
    and "headline", the metric to judge by: "map" if any video has several labels, else "top1".

    top-k: a label of the video is among its k best classes (upstream's top-k fails on lists of labels). mean_class: the
    mean recall of the classes that have videos. map: the mean average precision of these classes, as upstream's.
    mmaction2's mean class accuracy counts a class without videos, too, if it is the best class of some video: as 0. Where
    this makes a difference, "mean_class_mmaction2" stands beside mean_class.
    """
    hits = np.take_along_axis(scored.truth, scored.best, axis=1)
    table = per_class(scored)
    has_clips = table["clips"] > 0
    mean_class = float(table["recall"][has_clips].mean())
    counted = np.union1d(np.flatnonzero(has_clips), scored.best[:, 0])  # mmaction2's classes
    of_mmaction2 = mean_class * int(has_clips.sum()) / len(counted)
    return {
        "top1": 100 * float(hits[:, 0].mean()),
        "top5": 100 * float(hits.any(1).mean()),
        "mean_class": mean_class,
        **({} if len(counted) == has_clips.sum() else {"mean_class_mmaction2": of_mmaction2}),
        "map": float(table["ap"][has_clips].mean()),
        "headline": "map" if scored.has_several_labels else "top1",
        "clips": len(scored.videos),
        "failed": scored.failed,
        "unlabelled": scored.unlabelled,
    }


def per_class(scored: ScoredVideos) -> dict[str, np.ndarray]:
    """Arrays [K]. "clips", int: the clips with the class as a label. In percent, float, NaN if undefined: "recall" (the share
    of these clips whose best class is this class), "precision" (the share of the clips with this best class that have the
    label), and "ap" (average precision)."""
    clips = scored.truth.sum(0)
    predicted = np.eye(scored.truth.shape[1], dtype=bool)[scored.best[:, 0]]
    correct = (predicted & scored.truth).sum(0)
    with np.errstate(invalid="ignore"):
        recall, precision = correct / clips, correct / predicted.sum(0)
    ap = np.array([average_precision(*column) for column in zip(scored.probabilities.T, scored.truth.T, strict=True)])
    return {"clips": clips, "recall": 100 * recall, "precision": 100 * precision, "ap": 100 * ap}


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The sum of (R_n - R_{n-1}) P_n over distinct thresholds, without interpolation; NaN without positives.

    `scores`: [N], `truth`: bool [N]. (torchmetrics gives 0 without positives, and adds in float32.)"""
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores)
    thresholds = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last position of each score
    hits = np.cumsum(truth[order])[thresholds]
    return float((np.diff(hits, prepend=0) * hits / (thresholds + 1)).sum() / hits[-1])


def confusion(scored: ScoredVideos) -> np.ndarray:
    """The confusion matrix, int64 [K,K]: rows are true classes, columns are best classes. For clips with one label each."""
    assert not scored.has_several_labels
    # Not by torchmetrics: its import is a fifth of a command's start.
    cells = np.zeros((scored.truth.shape[1],) * 2, np.int64)
    np.add.at(cells, (scored.truth.argmax(1), scored.best[:, 0]), 1)
    return cells


def confused_pairs(counts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The wrong cells (true class, answer) of a confusion matrix [K,K] that have clips, at most `most`, most clips first."""
    errors = counts * (1 - np.eye(len(counts), dtype=np.int64))
    cells = [divmod(int(i), len(counts)) for i in np.argsort(-errors, axis=None, kind="stable")[:most]]
    return [cell for cell in cells if errors[cell]]


def chance(counts: np.ndarray) -> float:
    """The top-1, in percent, of a model that always answers the most frequent label. `counts`: clips of each label."""
    return 100 * float(counts.max() / counts.sum())


def headline(metrics: dict) -> str:
    """The metric to judge by, as text: "top-1 71.25 %"."""
    name = metrics["headline"]
    return f"{'mAP' if name == 'map' else 'top-1'} {metrics[name]:.2f} %"
