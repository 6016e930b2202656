"""A sample of the teacher's maps, on which a basis and ranges are estimated."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from stages.runtime.distributed import Ranks
from stages.runtime.progress import progress_bar
from stages.shards.dataset import Dataset
from stages.stream.clips import ClipDataset
from stages.stream.epoch_plan import hash_parts, splitmix64
from stages.stream.loading import decoding_workers, raise_errors
from stages.stream.worker_pool import make_batches
from stages.teacher.codes import finite_rows
from stages.teacher.config import CacheConfig
from stages.teacher.reduction import Sample, gather_sample
from stages.teacher.teacher import Teacher

HOLD_OUT_EVERY = 5  # every fifth sampled clip is held out, to measure the error


def sample_maps(config: CacheConfig, data: Dataset, teacher: Teacher, ranks: Ranks, clip_views: int) -> Sample:
    """A Sample of the teacher's maps of `clip_views` clip·views, spread over the clips and the views to be stored.

    The choice depends on the data set, the policy's seed and `clip_views` alone. Every fifth clip is held out.
    """
    clips = [(s, int(r)) for s, usable in enumerate(data.usable_rows()) for r in usable]
    order = np.argsort(splitmix64(hash_parts(config.policy.seed, len(clips)), len(clips)), kind="stable")
    total = min(clip_views, len(clips) * config.views)
    chosen = [(int(order[i % len(clips)]), i // len(clips)) for i in range(total)]
    position = {clip: i for i, clip in enumerate(order.tolist())}
    chosen.sort()  # the order on disk, with the views of a clip together
    parts = [chosen[i : i + teacher.batch_size] for i in range(0, total, teacher.batch_size)]
    batches = [[(*clips[c], (position[c] + v) % config.views) for c, v in part] for part in parts]
    held_out = [np.array([position[c] % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1 for c, _ in part]) for part in parts]
    views = ClipDataset(data, size=teacher.size, num_classes=len(data.classes), policy=config.policy)
    workers = min(decoding_workers(config.loader), len(batches))
    decoded = make_batches(views.fetcher, batches, workers, config.loader, data=data)
    with progress_bar("clip·views", disable=not ranks.first) as bar:
        task, started = bar.add_task("basis and ranges", total=total, rate=0.0, note=""), time.perf_counter()

        def finite_maps() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
            for batch, held in zip(raise_errors(decoded), held_out, strict=True):
                maps = teacher.maps(batch.clips)
                finite = finite_rows(maps).cpu() & batch.usable
                yield maps[finite.to(maps.device)], held[finite.numpy()]
                bar.advance(task, len(held))
                bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started))

        return gather_sample(finite_maps(), teacher.grid, moments=teacher.features.has_basis)
