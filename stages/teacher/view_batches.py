"""Passes of the teacher over every view of a data set: its input, and the one that estimates its statistics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader

from cache.errors import ReskdError
from cache.store import make_folders
from stages.config.schema import CacheConfig
from stages.models.checkpoints import save_model
from stages.runtime.distributed import Ranks
from stages.runtime.log import console, progress_bar
from stages.shards.dataset import Dataset
from stages.stream.all_views import AllViews, ViewBatch, Work
from stages.stream.clips import Clips
from stages.stream.epoch_plan import hash_parts, splitmix64
from stages.stream.loading import decoding_workers, identity, raising
from stages.teacher.recalibrate import recalibrate
from stages.teacher.reduction import Sample, gather
from stages.teacher.teacher import RECALIBRATED, Teacher


@contextmanager
def view_batches(
    config: CacheConfig, data: Dataset, work: list[Work], teacher: Teacher, at: Ranks, strict: bool, title: str
) -> Iterator[Iterator[ViewBatch]]:
    """All views of `work`, decoded in workers, under a progress bar. `strict`: an unreadable clip is a ReskdError."""
    batches = AllViews(data, work, config.policy, teacher.size, teacher.batch_size)
    workers = min(decoding_workers(config.loader), len(batches))
    clip = config.policy.num_frames * 3 * teacher.size**2
    each = max((len(w.views) for w in work), default=0) * teacher.batch_size * clip
    fits = psutil.virtual_memory().available // 8 // max(1, each * workers)  # batches of all views, in shared memory
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, min(config.loader.prefetch, fits)) if workers else None,
        pin_memory=at.device.type == "cuda",
        generator=torch.Generator(),
    )
    total = sum(data.entry(w.shard).clips * len(w.views) for w in work)
    with progress_bar("clip·views", disable=not at.first) as bar:
        task, started = bar.add_task(title, total=total, rate=0.0, note=""), time.perf_counter()

        def served() -> Iterator[ViewBatch]:
            for batch in raising(loader):
                for key, reason in batch.quarantine.items() if strict else ():
                    raise ReskdError(f"{data.path}: shard {batch.work.shard}, clip {key!r}: {reason} (--strict)")
                yield batch
                bar.advance(task, batch.frames.shape[0] * batch.frames.shape[1])
                bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started), note=batch.work.shard)

        yield served()


def estimate_statistics(config: CacheConfig, data: Dataset, teacher: Teacher, at: Ranks, strict: bool) -> None:
    """Estimate the pending teacher's BatchNorm statistics on every view to be stored, and keep it in the cache's folder.

    A batch is a forward of the cache without padding and unreadable rows. Each rank takes every W-th shard.
    """
    work = [Work(e.name, range(config.views)) for e in data.shards[at.rank :: at.world]]

    def forwards(batches: Iterator[ViewBatch]) -> Iterator[torch.Tensor]:
        for batch in batches:
            rows = data.rows(batch.work.shard)[batch.start : batch.start + len(batch.frames)]
            readable = [i for i, row in enumerate(rows) if row.key not in batch.quarantine]
            for clips in batch.clips if readable else ():
                yield clips[readable].to(at.device)

    with view_batches(config, data, work, teacher, at, strict, "recalibrate") as batches:
        count = recalibrate(teacher.model, forwards(batches), teacher.dtype, at.sum)
    at.first_does(partial(_keep, config.output, teacher))
    if at.first:
        console.print(f"BatchNorm statistics: {count} batches of {config.views} views of every clip")


def _keep(folder: Path, teacher: Teacher) -> None:
    make_folders(folder)
    save_model(folder / RECALIBRATED, teacher.model, teacher.pending)


FLOAT16_MAX = 65504.0  # beyond it a teacher is as good as not finite
HELD_OUT = 5  # one of so many sampled clips measures the error


def sample_maps(config: CacheConfig, data: Dataset, teacher: Teacher, at: Ranks, clip_views: int) -> Sample:
    """The teacher's maps of so many clip·views, spread over the clips and the views to be stored, gathered.

    Which they are depends on the data set, the policy's seed and their number alone. Every fifth clip is held out.
    """
    clips = [(s, int(r)) for s, usable in enumerate(data.usable_rows()) for r in usable]
    order = np.argsort(splitmix64(hash_parts(config.policy.seed, len(clips)), len(clips)), kind="stable")
    number = min(clip_views, len(clips) * config.views)
    chosen = [(int(order[i % len(clips)]), i // len(clips)) for i in range(number)]
    place = {clip: i for i, clip in enumerate(order.tolist())}
    chosen.sort()  # as they lie on disk; views of one clip together
    n = teacher.batch_size
    batches = [[(*clips[c], (place[c] + v) % config.views) for c, v in chosen[i : i + n]] for i in range(0, number, n)]
    held = [np.array([place[c] % HELD_OUT == HELD_OUT - 1 for c, _ in chosen[i : i + n]]) for i in range(0, number, n)]
    drawn = Clips(data, size=teacher.size, num_classes=len(data.classes), policy=config.policy)
    workers = min(decoding_workers(config.loader), len(batches))
    loader = DataLoader(drawn, batch_sampler=batches, num_workers=workers, collate_fn=identity, generator=torch.Generator(),
                        prefetch_factor=config.loader.prefetch if workers else None)  # fmt: skip
    with progress_bar("clip·views", disable=not at.first) as bar:
        task, started = bar.add_task("basis and ranges", total=number, rate=0.0, note=""), time.perf_counter()

        def maps() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
            for batch, out in zip(raising(loader), held, strict=True):
                found = teacher.maps(batch.clips)
                finite = (found.flatten(1).abs() <= FLOAT16_MAX).all(1).cpu() & batch.usable
                yield found[finite.to(found.device)], out[finite.numpy()]
                bar.advance(task, len(out))
                bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started))

        return gather(maps(), teacher.grid, moments=teacher.features.has_basis)
