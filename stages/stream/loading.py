"""DataLoaders: how many processes decode, batches in order, errors that travel as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from cache.errors import ReskdError
from stages.runtime.distributed import Ranks, cores
from stages.stream.batch import Batch
from stages.stream.clips import Clips
from stages.stream.config import LoaderConfig


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
    """Every usable row of the data set once, in order, in all views of the policy (which has no jitter).

    A batch holds whole rows: as many as have `batch_size` views together, or one that has more. Rank r takes batches r,
    r+W, …: none is padded or repeated. A worker holds `loader.prefetch` of them, a byte a number: 30 views of 32 frames
    at 224 px are 144 MB.
    """
    views = clips.policy.views
    rows = [(s, int(r)) for s, usable in enumerate(clips.data.usable_rows()) for r in usable]
    step = max(1, batch_size // views)
    starts = range(0, len(rows), step)[ranks.rank :: ranks.world]
    batches = [[(s, r, v) for s, r in rows[i : i + step] for v in range(views)] for i in starts]
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
