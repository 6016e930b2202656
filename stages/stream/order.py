"""The batches of a run, epoch after epoch, as lists of (shard, row, view). DataLoader workers fetch them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from stages.runtime.distributed import Ranks
from stages.stream.batch import Batch
from stages.stream.clips import ClipDataset, Index
from stages.stream.config import LoaderConfig
from stages.stream.epoch_plan import plan_epoch, replay_view, stream_count
from stages.stream.loading import decoding_workers, keep_batch, raise_errors


@dataclass(frozen=True)
class Order:
    """All that the order of a run depends on. Workers, ranks and targets don't change the order."""

    rows: Sequence[np.ndarray]  # usable rows of each shard
    names: Sequence[str]  # of the shards
    seed: int
    batch_size: int
    group: int  # micro-batches of an optimizer step: ranks × accumulate
    window: int
    streams: int
    views: int | None  # number of stored views that are replayed; None: a fresh view in each epoch

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards and rows of an epoch's micro-batches, both int32 [M,B]."""
        return plan_epoch(
            self.rows,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            window=self.window,
            streams=self.streams,
            group=self.group,
        )

    def digest(self) -> str:
        """sha256 of all that the order depends on. A resumed run must have the same digest."""
        fixed = [list(self.names), self.seed, self.batch_size, self.group, self.window, self.streams, self.views]
        digest = hashlib.sha256(json.dumps(fixed).encode())
        for rows in self.rows:
            digest.update(np.asarray(rows, np.int64).tobytes() + b"|")
        return digest.hexdigest()

    def steps_per_epoch(self) -> int:
        return sum(map(len, self.rows)) // self.batch_size // self.group

    def resident_blocks(self, readers: int) -> int:
        """Blocks that each of `readers` processes keeps in memory, so that it reads each block once an epoch.

        For each of its streams, it keeps one window and the first block of the next window."""
        streams = stream_count(self.steps_per_epoch() * self.group, self.streams)
        return streams // math.gcd(streams, readers) * (self.window + 1)

    def batches(self, epoch: int, first_step: int, rank: int, world: int) -> Iterator[list[Index]]:
        """The micro-batches of a rank in an epoch, from an optimizer step on."""
        shards, rows = self.epoch(epoch)
        views = [epoch if self.views is None else replay_view(epoch, name, self.views) for name in self.names]
        for j in range(first_step * self.group + rank, len(shards), world):
            yield [(int(s), int(r), views[s]) for s, r in zip(shards[j], rows[j], strict=True)]


class _RemainingBatches:
    """A batch sampler over the rest of the run. So workers already fetch the next epoch at the end of an epoch."""

    def __init__(self, order: Order, epochs: int, start: tuple[int, int], ranks: Ranks):
        self.order, self.epochs, self.start, self.ranks = order, epochs, start, ranks

    def __iter__(self) -> Iterator[list[Index]]:
        first_epoch, first_step = self.start
        for epoch in range(first_epoch, self.epochs):
            yield from self.order.batches(epoch, first_step, self.ranks.rank, self.ranks.world)
            first_step = 0


def batches_of_run(
    clips: ClipDataset, order: Order, epochs: int, start: tuple[int, int], loader: LoaderConfig, ranks: Ranks
) -> Iterable[Batch]:
    """All micro-batches of this rank from `start` (epoch, step in the epoch) to the end of the run."""
    workers = decoding_workers(loader)
    return raise_errors(
        DataLoader(
            clips,
            batch_sampler=_RemainingBatches(order, epochs, start, ranks),
            num_workers=workers,
            prefetch_factor=loader.prefetch if workers else None,
            collate_fn=keep_batch,
            pin_memory=ranks.device.type == "cuda",
            # An iterator draws from the generator. With the global one, dropout would differ after a resume.
            generator=torch.Generator(),
        )
    )
