"""The teacher's input: every view of a data set in batches, for the cache and for the BatchNorm statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cache.errors import ReskdError
from stages.runtime.distributed import Ranks
from stages.runtime.memory import memory_of_rank
from stages.runtime.progress import progress_bar
from stages.shards.dataset import Dataset
from stages.stream.all_views import AllViews, ShardWork, ViewBatch
from stages.stream.config import LoaderConfig
from stages.stream.loading import decoding_workers, raise_errors
from stages.stream.read_ahead import read_ahead
from stages.stream.worker_pool import make_batches
from stages.teacher.config import CacheConfig
from stages.teacher.teacher import Teacher


@contextmanager
def view_batches(
    config: CacheConfig,
    data: Dataset,
    work: list[ShardWork],
    teacher: Teacher,
    ranks: Ranks,
    strict: bool,
    title: str,
    claim: Callable[[ShardWork], bool] = lambda work: True,
) -> Iterator[Iterator[ViewBatch]]:
    """All views of `work`, decoded in workers, under a progress bar. `strict`: an unreadable clip is a ReskdError.

    `claim`: see `AllViews.read`.
    """
    views = AllViews(data, work, config.policy, teacher.size, teacher.batch_size)
    workers = min(decoding_workers(config.loader), len(views))
    loader = fitting_loader(config, data, work, teacher, workers)
    pin = ranks.device.type == "cuda"
    decoded = make_batches(views.fetcher, read_ahead(views.read(claim)), workers, loader, data=data, pin=pin)
    total = sum(data.entry(w.shard).clips * len(w.views) for w in work)
    with progress_bar("clip·views", disable=not ranks.first) as bar:
        task, started = bar.add_task(title, total=total, rate=0.0, note=""), time.perf_counter()

        def checked_batches() -> Iterator[ViewBatch]:
            for batch in raise_errors(decoded):
                for key, reason in batch.quarantine.items() if strict else ():
                    raise ReskdError(f"{data.path}: shard {batch.work.shard}, clip {key!r}: {reason} (--strict)")
                yield batch
                bar.advance(task, batch.frames.shape[0] * batch.frames.shape[1])
                bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started), note=batch.work.shard)

        yield checked_batches()


def fitting_loader(
    config: CacheConfig, data: Dataset, work: Sequence[ShardWork], teacher: Teacher, workers: int
) -> LoaderConfig:
    """The config's loader, with as many batches ahead as fit into an eighth of the memory."""
    pixels = max((len(w.views) for w in work), default=0) * config.policy.num_frames * 3 * teacher.size**2
    entries = [data.entry(w.shard) for w in work]
    encoded = sum(entry.bytes for entry in entries) // max(1, sum(entry.clips for entry in entries))
    batch_bytes = teacher.batch_size * (pixels + 2 * encoded)  # of videos, one copy is kept for a second try
    fitting = memory_of_rank() // 8 // max(1, batch_bytes * workers)  # batches a worker
    return config.loader.model_copy(update={"prefetch": max(1, min(config.loader.prefetch, fitting))})
