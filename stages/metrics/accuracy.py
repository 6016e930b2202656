"""Accuracy of scored videos: top-k, mean class accuracy, mAP, the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix


@dataclass(frozen=True)
class ScoredVideos:
    """What a model says of each labelled video that could be decoded, in the data set's order."""

    videos: np.ndarray  # int64 [N,2] shard, row
    probabilities: np.ndarray  # float64 [N,K]
    truth: np.ndarray  # bool [N,K], all labels of each
    failed: int  # videos that could not be decoded
    unlabelled: int  # and those that could, but have no label

    @property
    def several(self) -> bool:
        """Whether any video has several labels."""
        return bool((self.truth.sum(1) > 1).any())

    @cached_property
    def best(self) -> np.ndarray:
        """The five best classes of each, best first, int64 [N,5]; of equal ones the later first, as in scikit-learn."""
        return np.argsort(self.probabilities, axis=1, kind="stable")[:, :-6:-1].copy()


def measure(scored: ScoredVideos) -> dict[str, float | int | str]:
    """In percent "top1", "top5", "mean_class" and "map"; the counts "clips" that they are of, "failed", "unlabelled";
    and as "headline" which of them to judge by: "map" where any video has several labels, else "top1".

    top-k: any label of the video is among its k best classes (the seed's fails on lists of labels). mean_class: mean
    recall of the classes that have videos. map: mean average precision of those classes, as the seed's.
    """
    hits = np.take_along_axis(scored.truth, scored.best, axis=1)
    table = per_class(scored)
    has = table["clips"] > 0
    return {
        "top1": 100 * float(hits[:, 0].mean()),
        "top5": 100 * float(hits.any(1).mean()),
        "mean_class": float(table["recall"][has].mean()),
        "map": float(table["ap"][has].mean()),
        "headline": "map" if scored.several else "top1",
        "clips": len(scored.videos),
        "failed": scored.failed,
        "unlabelled": scored.unlabelled,
    }


def per_class(scored: ScoredVideos) -> dict[str, np.ndarray]:
    """[K] each: int "clips" with that label; float in percent, NaN where undefined, "recall" (of those, the share whose
    best class it is), "precision" (of the clips whose best class it is, the share that has the label) and "ap"."""
    clips = scored.truth.sum(0)
    named = np.eye(scored.truth.shape[1], dtype=bool)[scored.best[:, 0]]
    right = (named & scored.truth).sum(0)
    with np.errstate(invalid="ignore"):
        recall, precision = right / clips, right / named.sum(0)
    ap = np.array([average_precision(*column) for column in zip(scored.probabilities.T, scored.truth.T, strict=True)])
    return {"clips": clips, "recall": 100 * recall, "precision": 100 * precision, "ap": 100 * ap}


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Sum over distinct thresholds of (R_n - R_{n-1}) P_n, without interpolation, of scores [N] and truth bool [N]; NaN
    without positives. (torchmetrics' is 0 there, and adds in float32.)"""
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores)
    thresholds = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last place of each score
    hits = np.cumsum(truth[order])[thresholds]
    return float((np.diff(hits, prepend=0) * hits / (thresholds + 1)).sum() / hits[-1])


def confusion(scored: ScoredVideos) -> np.ndarray:
    """Clips of each class (row) by the class they were taken for (column), int64 [K,K]; for single labels."""
    assert not scored.several
    if scored.truth.shape[1] == 1:  # which torchmetrics refuses
        return np.array([[len(scored.truth)]])
    best, truth = torch.from_numpy(scored.best[:, 0]), torch.from_numpy(scored.truth.argmax(1))
    return multiclass_confusion_matrix(best, truth, scored.truth.shape[1]).numpy()


def chance(counts: np.ndarray) -> float:
    """top-1 in percent of always naming the most frequent label, given each label's count."""
    return 100 * float(counts.max() / counts.sum())


def headline(metrics: dict) -> str:
    """The figure to judge by, for people: "top-1 71.25 %"."""
    by = metrics["headline"]
    return f"{'mAP' if by == 'map' else 'top-1'} {metrics[by]:.2f} %"
