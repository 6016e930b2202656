"""Accuracy of a model over a data set: each video's views averaged, gathered from every rank, and measured once.

The gather makes the numbers those of one process, whatever the number of ranks; a row that two of them scored counts
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cache.errors import ReskdError
from stages.runtime.distributed import Ranks
from stages.stream.clips import Batch
from stages.stream.loading import raising
from stages.video.device_render import Rendering

Average = Literal["prob", "logit", "feature"]


@dataclass(frozen=True)
class Scored:
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


@torch.inference_mode()
def collect(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    classes: int,
    ranks: Ranks,
    amp: bool,
    *,
    average: Average = "prob",
    forward: int | None = None,
) -> Scored:
    """Run a model in eval mode over batches of whole videos (all views of a row together), `forward` views at a time.

    A video's probabilities are the mean over its views of their softmax ("prob"), or the softmax of their mean logits
    ("logit") or of the classifier's answer to their mean feature ("feature": the same for a linear classifier).
    Raises ReskdError where no video is labelled and decodable, or a score is not finite.
    """
    rows = [_scored(model, batch, batch.to(ranks.device), amp, average, forward) for batch in raising(batches)]
    return _gathered(rows, classes, ranks)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # videos, probabilities, truth, usable


def _scored(
    model: torch.nn.Module, batch: Batch, there: Batch, amp: bool, average: Average = "prob", forward: int | None = None
) -> Rows:
    """Of whole videos; `there`: the same on the model's device."""
    videos = batch.index[:, :2].unique_consecutive(dim=0)
    scores = _probabilities(model, there.clips, len(videos), amp, average, forward)
    views = len(batch.index) // len(videos)
    usable = batch.usable.view(len(videos), views).all(1)
    truth = batch.multi_hot[::views] > 0
    return videos.numpy(), scores.cpu().numpy(), truth.numpy(), usable.numpy()


def _gathered(rows: Sequence[Rows], classes: int, ranks: Ranks) -> Scored:
    """What all ranks have scored, each video once."""
    none = (np.zeros((0, 2), np.int64), np.zeros((0, classes)), np.zeros((0, classes), bool), np.zeros(0, bool))
    gathered = ranks.gather([np.concatenate(column) for column in zip(none, *rows, strict=True)])
    videos, scores, truth, usable = (np.concatenate(column) for column in zip(*gathered, strict=True))
    videos, first = np.unique(videos, axis=0, return_index=True)
    scores, truth, usable = scores[first], truth[first], usable[first]
    labelled = truth.any(1)
    keep = usable & labelled
    if not keep.any():
        raise ReskdError("no clip to evaluate on: every one is unlabelled or unreadable; give a labelled data set")
    if not np.isfinite(scores[keep]).all():
        raise ReskdError(
            "the model's scores are not finite: its weights are damaged, or bfloat16 overflows (set amp: off)"
        )
    return Scored(videos[keep], scores[keep], truth[keep], int((~usable).sum()), int((usable & ~labelled).sum()))


def _probabilities(
    model: torch.nn.Module, clips: Tensor, videos: int, amp: bool, average: Average, forward: int | None
) -> Tensor:
    """float64 [videos,K] of clips [videos * views,T,3,S,S]. In float32 sure answers would tie at 1."""
    answers = []
    for part in clips.split(forward or len(clips)):
        with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=amp):
            output = model(part)
        answers.append(output.features.float().mean((1, 2, 3)) if average == "feature" else output.logits.float())
    views = torch.cat(answers).double().unflatten(0, (videos, -1))
    if average == "prob":
        return views.softmax(-1).mean(1)
    mean = views.mean(1)
    if average == "feature":
        mean = model.head(mean.float()[:, None, None, None]).double()  # a map of one time and place
    return mean.softmax(-1)


def measure(scored: Scored) -> dict[str, float | int | str]:
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


class Net(NamedTuple):
    """A model (in eval mode) that is scored, and how it sees a batch."""

    model: torch.nn.Module
    rendering: Rendering | None  # None: the batch's own clips
    amp: bool  # in bfloat16


@torch.inference_mode()
def score_each(nets: Sequence[Net], batches: Iterable[Batch], classes: int, ranks: Ranks) -> list[dict | Exception]:
    """`measure` of several nets over one stream of whole videos, probabilities averaged; an error in the place of one that
    fails: by scores that are not finite, or, of several nets or ranks, by anything, on any rank."""
    rows: list[list[Rows]] = [[] for _ in nets]
    failed: dict[int, Exception] = {}
    for batch in raising(batches):
        there = batch.to(ranks.device)  # once for all
        for i, net in enumerate(nets):
            if i in failed:
                continue
            try:
                rows[i].append(_scored(net.model, batch, there.seen_at(net.rendering), net.amp))
            except Exception as error:
                if len(nets) == 1 and ranks.world == 1:
                    raise
                failed[i] = error
    failed = ranks.failed(failed)
    return [failed.get(i) or _measured(of_net, classes, ranks) for i, of_net in enumerate(rows)]


def _measured(rows: Sequence[Rows], classes: int, ranks: Ranks) -> dict | ReskdError:
    try:
        return measure(_gathered(rows, classes, ranks))
    except ReskdError as error:
        return error


def per_class(scored: Scored) -> dict[str, np.ndarray]:
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


def confusion(scored: Scored) -> np.ndarray:
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
