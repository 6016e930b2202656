"""Accuracy of models on a data set. The views of a video are averaged; the videos of all ranks are gathered and measured.

So the metrics don't depend on the number of ranks. A row that two ranks scored counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache.errors import ReskdError
from stages.metrics.accuracy import ScoredVideos, measure
from stages.metrics.averaging import Average, averaged, view_scores
from stages.runtime.device_copy import copier
from stages.runtime.distributed import Ranks
from stages.stream.batch import Batch
from stages.stream.loading import raise_errors
from stages.video.render import Rendering


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
    """Score a model, in eval mode, on batches of whole videos (all views of a row together), `forward` views at a time.

    A video's probabilities are the mean of its views' softmax ("prob"), the softmax of their mean logits ("logit"), or the
    softmax of the classifier's logits for their mean feature ("feature": equals "logit" for a linear classifier).
    Raises ReskdError if no video is both labelled and decodable, or a score is not finite.
    """
    copy = copier(ranks.device)
    scores = [_score_batch(model, b, b.copied(copy), amp, average, forward) for b in raise_errors(batches)]
    return _gather_videos(scores, classes, ranks)


class BatchScores(NamedTuple):
    """The scores of one batch of V whole videos; K classes."""

    videos: np.ndarray  # int64 [V,2]: shard, row
    probabilities: np.ndarray  # float64 [V,K]
    truth: np.ndarray  # bool [V,K]: all labels of each video
    usable: np.ndarray  # bool [V]: all views could be decoded


def _score_batch(
    model: torch.nn.Module,
    batch: Batch,
    on_device: Batch,
    amp: bool,
    average: Average = "prob",
    forward: int | None = None,
) -> BatchScores:
    """Scores of a batch of whole videos. `on_device`: the same batch on the model's device."""
    videos = batch.index[:, :2].unique_consecutive(dim=0)
    probabilities = _probabilities(model, on_device.clips, len(videos), amp, average, forward)
    views = len(batch.index) // len(videos)
    usable = batch.usable.view(len(videos), views).all(1)
    truth = batch.multi_hot[::views] > 0
    return BatchScores(videos.numpy(), probabilities.cpu().numpy(), truth.numpy(), usable.numpy())


def _gather_videos(batches: Sequence[BatchScores], classes: int, ranks: Ranks) -> ScoredVideos:
    """The videos that all ranks have scored, each video once."""
    empty = (np.zeros((0, 2), np.int64), np.zeros((0, classes)), np.zeros((0, classes), bool), np.zeros(0, bool))
    gathered = ranks.gather([np.concatenate(column) for column in zip(empty, *batches, strict=True)])
    videos, scores, truth, usable = (np.concatenate(column) for column in zip(*gathered, strict=True))
    videos, first = np.unique(videos, axis=0, return_index=True)
    scores, truth, usable = scores[first], truth[first], usable[first]
    labelled = truth.any(1)
    keep = usable & labelled
    if not keep.any():
        raise ReskdError("no clip to evaluate on: all clips are unlabelled or unreadable. Give a labelled data set")
    if not np.isfinite(scores[keep]).all():
        raise ReskdError(
            "the model's scores are not finite: its weights are damaged, or bfloat16 overflows (set amp: off)"
        )
    return ScoredVideos(videos[keep], scores[keep], truth[keep], int((~usable).sum()), int((usable & ~labelled).sum()))


def _probabilities(
    model: torch.nn.Module, clips: Tensor, videos: int, amp: bool, average: Average, forward: int | None
) -> Tensor:
    """float64 [videos,K], from clips [videos * views,T,3,S,S]."""
    views = view_scores(model, clips, amp=amp, average=average, forward=forward)
    return averaged(model, views.unflatten(0, (videos, -1)).mean(1), average)


class ScoredModel(NamedTuple):
    """A model, in eval mode, that is scored, and the rendering that it takes."""

    model: torch.nn.Module
    rendering: Rendering | None  # None: the batch's own clips
    amp: bool  # bfloat16 autocast


@torch.inference_mode()
def score_models(
    models: Sequence[ScoredModel], batches: Iterable[Batch], classes: int, ranks: Ranks
) -> list[dict | Exception]:
    """`measure` of several models on one stream of whole videos; the views' probabilities are averaged.

    The result holds an error in the place of a model that fails: if its scores are not finite, or, with several models or
    ranks, for any error on any rank. With one model and one rank, other errors are raised.
    """
    scores: list[list[BatchScores]] = [[] for _ in models]
    errors: dict[int, Exception] = {}
    copy = copier(ranks.device)
    for batch in raise_errors(batches):
        on_device = batch.copied(copy)  # once for all models
        for i, scored in enumerate(models):
            if i in errors:
                continue
            try:
                rendered = on_device.with_rendering(scored.rendering)
                scores[i].append(_score_batch(scored.model, batch, rendered, scored.amp))
            except Exception as error:
                if len(models) == 1 and ranks.world == 1:
                    raise
                errors[i] = error
    errors = ranks.failed(errors)
    return [errors.get(i) or _measure_or_error(of_model, classes, ranks) for i, of_model in enumerate(scores)]


def _measure_or_error(batches: Sequence[BatchScores], classes: int, ranks: Ranks) -> dict | ReskdError:
    try:
        return measure(_gather_videos(batches, classes, ranks))
    except ReskdError as error:
        return error
