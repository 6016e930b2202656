"""The batches of a run, epoch after epoch, as lists of (shard, row, view). Workers fetch them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.runtime.distributed import Ranks
from stages.shards.dataset import Dataset
from stages.stream.batch import Batch
from stages.stream.block_cache import Epochs
from stages.stream.block_sizes import blocks_of_rows
from stages.stream.clips import ClipDataset, Index
from stages.stream.config import LoaderConfig
from stages.stream.epoch_plan import plan_epoch, replay_view, stream_count
from stages.stream.loading import decoding_workers, raise_errors, replaying_workers
from stages.stream.local_folder import budget_of, check_budget, in_store, read_through_folder
from stages.stream.worker_pool import make_batches


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
        return self.open_streams // math.gcd(self.open_streams, readers) * (self.window + 1)

    @property
    def open_streams(self) -> int:
        """The streams that an epoch interleaves: `streams`, or fewer if the epoch is short."""
        return stream_count(self.steps_per_epoch() * self.group, self.streams)

    def node_batches(self, epoch: int, first_step: int, ranks: range, world: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards and rows, both [M,B], of the micro-batches of some of `world` ranks in an epoch, rank by rank in turn."""
        return tuple(
            part[first_step * self.group :].reshape(-1, world, self.batch_size)[:, ranks.start : ranks.stop]
            .reshape(-1, self.batch_size)
            for part in self.epoch(epoch)
        )  # fmt: skip

    def batches(self, epoch: int, first_step: int, rank: int, world: int) -> Iterator[list[Index]]:
        """The micro-batches of a rank in an epoch, from an optimizer step on."""
        shards, rows = self.epoch(epoch)
        views = [epoch if self.views is None else replay_view(epoch, name, self.views) for name in self.names]
        for j in range(first_step * self.group + rank, len(shards), world):
            yield [(int(s), int(r), views[s]) for s, r in zip(shards[j], rows[j], strict=True)]


def _remaining_batches(order: Order, epochs: int, start: tuple[int, int], ranks: Ranks) -> Iterator[list[Index]]:
    """The batches of the rest of the run. So workers already fetch the next epoch at the end of an epoch."""
    first_epoch, first_step = start
    for epoch in range(first_epoch, epochs):
        yield from order.batches(epoch, first_step, ranks.rank, ranks.world)
        first_step = 0


def node_epochs(data: Dataset, order: Order, epochs: int, start: tuple[int, int], ranks: Ranks) -> Epochs:
    """The blocks that all ranks of this machine read in the rest of the run."""
    first_epoch, first_step = start
    for epoch in range(first_epoch, epochs):
        shards, rows = order.node_batches(epoch, first_step, ranks.of_machine, ranks.world)
        yield f"{data.base}, epoch {epoch + 1}", blocks_of_rows(data, shards, rows)
        first_step = 0


def batches_of_run(
    clips: ClipDataset,
    order: Order,
    epochs: int,
    start: tuple[int, int],
    loader: LoaderConfig,
    ranks: Ranks,
    budget: int | None = None,
) -> Iterable[Batch]:
    """All micro-batches of this rank from `start` (epoch, step in the epoch) to the end of the run.

    `budget`: bytes of `loader.local` that videos in a store may take; None: all.
    """
    batches, pin = _remaining_batches(order, epochs, start, ranks), ranks.device.type == "cuda"
    workers = workers_of_run(order, loader, ranks.world)

    def make(read: ClipDataset) -> Iterator[Batch]:
        return raise_errors(make_batches(read.fetcher, batches, workers, loader, data=clips.data, pin=pin))

    if not (in_store(clips.data) and clips.reads_videos):
        return make(clips)
    budget = budget or budget_of(loader.local)
    check_budget(clips.data, order.open_streams, order.window, budget, ranks)
    node = node_epochs(clips.data, order, epochs, start, ranks)
    return read_through_folder(clips, make, node, loader.local, budget, ranks)


def workers_of_run(order: Order, loader: LoaderConfig, world: int) -> int:
    """The number of decoding processes of each rank in a run with this order.

    Fresh views need no blocks of a cache, and a short epoch has few: then all that `loader.workers` allows are taken.
    """
    if order.views is None or order.open_streams < order.streams:
        return decoding_workers(loader)
    return replaying_workers(loader, order.streams, world)
