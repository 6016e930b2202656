"""A sample of the teacher's maps, of which a basis and ranges are estimated."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from stages.runtime.distributed import Ranks
from stages.runtime.log import progress_bar
from stages.shards.dataset import Dataset
from stages.stream.clips import Clips
from stages.stream.epoch_plan import hash_parts, splitmix64
from stages.stream.loading import decoding_workers, identity, raising
from stages.teacher.config import CacheConfig
from stages.teacher.reduction import Sample, gather
from stages.teacher.teacher import Teacher

FLOAT16_MAX = 65504.0  # beyond it a teacher is as good as not finite
HELD_OUT = 5  # one of so many sampled clips measures the error


def sample_maps(config: CacheConfig, data: Dataset, teacher: Teacher, ranks: Ranks, clip_views: int) -> Sample:
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
    with progress_bar("clip·views", disable=not ranks.first) as bar:
        task, started = bar.add_task("basis and ranges", total=number, rate=0.0, note=""), time.perf_counter()

        def maps() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
            for batch, out in zip(raising(loader), held, strict=True):
                found = teacher.maps(batch.clips)
                finite = (found.flatten(1).abs() <= FLOAT16_MAX).all(1).cpu() & batch.usable
                yield found[finite.to(found.device)], out[finite.numpy()]
                bar.advance(task, len(out))
                bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started))

        return gather(maps(), teacher.grid, moments=teacher.features.has_basis)
