"""DataLoaders: how many processes decode, batches in order, errors that travel as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from cache.errors import ReskdError
from stages.config import LoaderConfig
from stages.data.join import Batch, Clips
from stages.training.distributed import Ranks, cores


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
