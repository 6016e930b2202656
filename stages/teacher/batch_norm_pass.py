"""A pass of the teacher over every view, which estimates its BatchNorm statistics again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from cache.store import make_folders
from stages.models.checkpoints import save_model
from stages.runtime.device_copy import copier
from stages.runtime.distributed import Ranks
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.all_views import ShardWork, ViewBatch
from stages.teacher.config import CacheConfig
from stages.teacher.load_teacher import RECALIBRATED
from stages.teacher.recalibrate import recalibrate
from stages.teacher.teacher import Teacher
from stages.teacher.view_batches import view_batches


def estimate_statistics(config: CacheConfig, data: Dataset, teacher: Teacher, ranks: Ranks, strict: bool) -> None:
    """Estimate the pending teacher's BatchNorm statistics on every view to be stored, and save it in the cache's folder.

    The batches are those of the cache, without padding and unreadable rows. Each rank takes every W-th shard.
    """
    copy = copier(ranks.device)
    work = [ShardWork(e.name, range(config.views)) for e in data.shards[ranks.rank :: ranks.world]]

    def readable_clips(batches: Iterator[ViewBatch]) -> Iterator[torch.Tensor]:
        for batch in batches:
            rows = data.rows(batch.work.shard)[batch.start : batch.start + len(batch.frames)]
            readable = [i for i, row in enumerate(rows) if row.key not in batch.quarantine]
            for clips in batch.clips if readable else ():
                yield copy(clips)[readable]

    with view_batches(config, data, work, teacher, ranks, strict, "recalibrate") as batches:
        count = recalibrate(teacher.model, readable_clips(batches), teacher.dtype, ranks.sum)
    ranks.run_on_first(partial(_save, config.output, teacher))
    if ranks.first:
        console.print(f"BatchNorm statistics: {count} batches of {config.views} views of every clip")


def _save(folder: Path, teacher: Teacher) -> None:
    make_folders(folder)
    save_model(folder / RECALIBRATED, teacher.model, teacher.pending)
