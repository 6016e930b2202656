"""Accuracy of a model over a data set: torchmetrics over every usable, labelled clip, on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores

from cache.errors import ReskdError
from stages.data.join import Batch
from stages.training.distributed import Ranks
from stages.training.loading import raising


def accuracy_metrics(num_classes: int) -> MetricCollection:
    """Fractions top1 and top5 of the clips, and per class [tp, fp, tn, fn, clips] as `per_class`."""
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro"),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
            "per_class": MulticlassStatScores(num_classes, average=None),
        },
        compute_groups=False,  # metrics that agree on the first batch would be taken for one
    )


@torch.inference_mode()
def score(model: torch.nn.Module, batches: Iterable[Batch], classes: int, ranks: Ranks, amp: bool) -> dict[str, float]:
    """Percent of a model in eval mode: "top1", "top5", "mean_class" (mean recall of the classes that have clips);
    and the counts "clips" that they are of and "failed" to decode.

    The multi-label rule of the seed's top-k: a clip of several labels is scored by its first.
    """
    metrics = accuracy_metrics(classes).to(ranks.device)
    seen = failed = 0
    for batch in raising(batches):
        batch = batch.to(ranks.device)
        with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=amp):
            logits = model(batch.clips).logits
        keep = batch.usable & (batch.labels >= 0)
        if keep.any():
            metrics.update(logits[keep].float(), batch.labels[keep])
        seen, failed = seen + int(keep.sum()), failed + int((~batch.usable).sum())
    counts = ranks.sum(torch.tensor([seen, failed], device=ranks.device)).tolist()
    if counts[0] == 0:
        raise ReskdError("no clip to evaluate on: every one is unlabelled or unreadable; give a labelled data set")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rank may have had no clip
        computed = metrics.compute()
    hits, *_, clips = computed.pop("per_class").T.float()
    computed["mean_class"] = (hits / clips)[clips > 0].mean()
    values = {name: 100 * float(value) for name, value in computed.items()}
    return {**values, "clips": counts[0], "failed": counts[1]}


def chance(counts: np.ndarray) -> float:
    """top-1 in percent of always naming the most frequent label, given each label's count."""
    return 100 * float(counts.max() / counts.sum())
