"""The parts of training, each measured alone, in milliseconds of one core per clip. The benches' bounds are sums of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch

from cache.reader import CacheReader
from cache.view import View, ViewPolicy, sample_view
from stages.bench.clocks import cpu_seconds
from stages.bench.figures import median_of
from stages.distill.student import build_student
from stages.distill.targets import loss_terms, target_decoder
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.packs.writing import pack_crops
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.batch import Batch
from stages.stream.clips import ClipDataset
from stages.stream.frame_source import frame_options
from stages.stream.pack_reader import open_pack
from stages.student.config import TrainConfig
from stages.student.optim import build_optimizer
from stages.video.decode import decode_frames
from stages.video.render import needed_frames, render


def input_ms(config: TrainConfig, runs: int) -> float:
    """The time to read, join, decode and render a clip of a batch."""
    batch = partial(_batch, config, _clips(config))
    return 1e3 * median_of(cpu_seconds(batch, runs))[0] / config.batch_size


def step_ms(config: TrainConfig, runs: int) -> float:
    """The time of forward, losses, backward and optimizer for a clip, of a student with a cache."""
    reader, batch = CacheReader(config.data.cache, config.losses.stored_targets), _batch(config, _clips(config))
    constants = reader.constants()
    model = build_model(config.model.model_copy(update={"num_classes": len(reader.manifest.identity.classes)}))
    maps = reader.manifest.identity.targets["features"]["map"]
    student = build_student(model, config.losses, maps[3], constants).train()
    optimizer, weights = build_optimizer(student, config.optim, config.batch_size), config.losses.weights()
    decoder = target_decoder(reader.manifest, constants, torch.device("cpu"))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        terms = loss_terms(student(batch.clips), batch, config.losses, decoder)
        sum(weights[name] * term for name, term in terms.items()).backward()
        optimizer.step()

    return 1e3 * median_of(cpu_seconds(step, runs))[0] / config.batch_size


def source_ms(data: Dataset, policy: ViewPolicy, views: int, sizes: tuple[int, int], quality: int) -> dict[str, float]:
    """Three times for the first video. `sizes`: px of the student and of the teacher.

    "d": decode one view and render it at both sizes. "D": decode `views` views at once and render each for the teacher.
    "k": decode these views and pack them as crops for the student.
    """
    shard = data.shards[0].name
    row, video = data.rows(shard)[0], data.read(shard, 0)
    sampled = [sample_view(policy, shard=shard, key=row.key, index=v, num_frames=row.frames, aspect=row.aspect)
               for v in range(views)]  # fmt: skip

    def decode_and_render(views: Sequence[View], sizes: Sequence[int]) -> None:
        frames, _ = needed_frames(views)
        pictures = dict(zip(frames.tolist(), decode_frames(video, frames, row.decoder)[0], strict=True))
        for view, size in product(views, sizes):
            render([pictures[frame] for frame in view.frames.tolist()], view, size)

    return {
        "d": _ms(partial(decode_and_render, sampled[:1], sizes)),
        "D": _ms(partial(decode_and_render, sampled, sizes[1:])),
        "k": _ms(partial(pack_crops, video, row, sampled, sizes[0], quality)),
    }


def forward_ms(model: ModelConfig, size: int, clips: int = 8) -> float:
    """The time of a teacher's forward pass for a view."""
    teacher = build_model(model.model_copy(update={"num_classes": 2})).eval()
    batch = torch.zeros(clips, model.num_frames, 3, size, size, dtype=torch.uint8)
    with torch.inference_mode():
        return _ms(partial(teacher, batch)) / clips


def _ms(work: Callable[[], object]) -> float:
    return 1e3 * median_of(cpu_seconds(work))[0]


def _clips(config: TrainConfig) -> ClipDataset:
    data, pack = open_dataset(config.data.train), config.data.pack and open_pack(config.data.pack)
    return ClipDataset(data, size=config.size, num_classes=len(data.classes), **frame_options(pack, config.loader),
                 cache=CacheReader(config.data.cache, config.losses.stored_targets))  # fmt: skip


def _batch(config: TrainConfig, clips: ClipDataset) -> Batch:
    rows = np.concatenate([np.stack([np.full(len(u), s), u], 1) for s, u in enumerate(clips.data.usable_rows())])
    return clips.__getitems__([(int(s), int(r), 0) for s, r in rows[: config.batch_size]])
