"""Accuracy of a model over a data set: torchmetrics over every usable, labelled clip, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from cache.errors import ReskdError
from stages.config import LoaderConfig
from stages.data.join import Batch, Clips
from stages.training.distributed import Ranks, cores


def accuracy_metrics(num_classes: int) -> MetricCollection:
    """top1, top5 (or top-K where there are fewer classes) over clips, and the mean over classes of their recall."""
    top = min(5, num_classes)
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro"),
            f"top{top}": MulticlassAccuracy(num_classes, average="micro", top_k=top),
            "mean_class": MulticlassAccuracy(num_classes, average="macro"),
        }
    )


def raising(batches: Iterable[Batch | ReskdError]) -> Iterator[Batch]:
    """Pass batches on; raise an error that a worker sent as a value."""
    for batch in batches:
        if isinstance(batch, ReskdError):
            raise batch
        yield batch


def identity(batch: Batch) -> Batch:
    """The data set makes whole batches: nothing to collate."""
    return batch


def decoding_workers(loader: LoaderConfig) -> int:
    """Processes that decode, of one rank: as asked for, or a core each."""
    return min(16, cores()) if loader.workers is None else loader.workers


def in_order(clips: Clips, loader: LoaderConfig, batch_size: int, ranks: Ranks) -> Iterable[Batch]:
    """Every usable row of the data set once, view 0, in order; rank r takes batches r, r+W, …"""
    rows = [(s, int(r), 0) for s, usable in enumerate(clips.data.usable_rows()) for r in usable]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)][ranks.rank :: ranks.world]
    workers = min(decoding_workers(loader), len(batches))
    return DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=loader.prefetch if workers else None,
        collate_fn=identity,
        pin_memory=ranks.device.type == "cuda",
        generator=torch.Generator(),
    )


@torch.inference_mode()
def score(model: torch.nn.Module, batches: Iterable[Batch], classes: int, ranks: Ranks, amp: bool) -> dict[str, float]:
    """Metrics in percent, and how many clips they are of (`clips`), of a model in eval mode.

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
    if seen == 0:  # this rank had none: torchmetrics would warn of an empty metric
        metrics.update(
            torch.zeros(0, classes, device=ranks.device), torch.zeros(0, dtype=torch.long, device=ranks.device)
        )
    values = {name: 100 * float(value) for name, value in metrics.compute().items()}
    return {**values, "clips": counts[0], "failed": counts[1]}


def chance(labels: Sequence[int], classes: int) -> float:
    """top-1 in percent of always naming the most frequent label."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes)
    return 100 * float(counts.max() / counts.sum())
