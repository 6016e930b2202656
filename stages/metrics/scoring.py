"""Accuracy of a model over a data set: each video's views averaged, gathered from every rank, and measured once.

The gather makes the numbers those of one process, whatever the number of ranks; a row that two of them scored counts
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache.errors import ReskdError
from stages.metrics.accuracy import ScoredVideos, measure
from stages.runtime.distributed import Ranks
from stages.stream.batch import Batch
from stages.stream.loading import raise_errors
from stages.video.device_render import Rendering

Average = Literal["prob", "logit", "feature"]


@torch.inference_mode()
def score_videos(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    classes: int,
    ranks: Ranks,
    amp: bool,
    *,
    average: Average = "prob",
    forward: int | None = None,
) -> ScoredVideos:
    """Run a model in eval mode over batches of whole videos (all views of a row together), `forward` views at a time.

    A video's probabilities are the mean over its views of their softmax ("prob"), or the softmax of their mean logits
    ("logit") or of the classifier's answer to their mean feature ("feature": the same for a linear classifier).
    Raises ReskdError where no video is labelled and decodable, or a score is not finite.
    """
    rows = [_scored(model, batch, batch.to(ranks.device), amp, average, forward) for batch in raise_errors(batches)]
    return _gathered(rows, classes, ranks)


BatchScores = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # videos, probabilities, truth, usable


def _scored(
    model: torch.nn.Module,
    batch: Batch,
    on_device: Batch,
    amp: bool,
    average: Average = "prob",
    forward: int | None = None,
) -> BatchScores:
    """Of whole videos; `there`: the same on the model's device."""
    videos = batch.index[:, :2].unique_consecutive(dim=0)
    scores = _probabilities(model, on_device.clips, len(videos), amp, average, forward)
    views = len(batch.index) // len(videos)
    usable = batch.usable.view(len(videos), views).all(1)
    truth = batch.multi_hot[::views] > 0
    return videos.numpy(), scores.cpu().numpy(), truth.numpy(), usable.numpy()


def _gathered(rows: Sequence[BatchScores], classes: int, ranks: Ranks) -> ScoredVideos:
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
    return ScoredVideos(videos[keep], scores[keep], truth[keep], int((~usable).sum()), int((usable & ~labelled).sum()))


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


class ScoredModel(NamedTuple):
    """A model (in eval mode) that is scored, and how it sees a batch."""

    model: torch.nn.Module
    rendering: Rendering | None  # None: the batch's own clips
    amp: bool  # in bfloat16


@torch.inference_mode()
def score_models(nets: Sequence[ScoredModel], batches: Iterable[Batch], classes: int, ranks: Ranks) -> list[dict | Exception]:
    """`measure` of several nets over one stream of whole videos, probabilities averaged; an error in the place of one that
    fails: by scores that are not finite, or, of several nets or ranks, by anything, on any rank."""
    rows: list[list[BatchScores]] = [[] for _ in nets]
    failed: dict[int, Exception] = {}
    for batch in raise_errors(batches):
        on_device = batch.to(ranks.device)  # once for all
        for i, net in enumerate(nets):
            if i in failed:
                continue
            try:
                rows[i].append(_scored(net.model, batch, on_device.with_rendering(net.rendering), net.amp))
            except Exception as error:
                if len(nets) == 1 and ranks.world == 1:
                    raise
                failed[i] = error
    failed = ranks.failed(failed)
    return [failed.get(i) or _measured(of_net, classes, ranks) for i, of_net in enumerate(rows)]


def _measured(rows: Sequence[BatchScores], classes: int, ranks: Ranks) -> dict | ReskdError:
    try:
        return measure(_gathered(rows, classes, ranks))
    except ReskdError as error:
        return error
