"""What a clip of training is made of, each part alone, in milliseconds of one core: the terms of the benches' bounds."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cache.reader import CacheReader
from stages.bench import median_of
from stages.bench.clocks import cpu_seconds
from stages.config import TrainConfig
from stages.data.join import Batch, Clips
from stages.data.packs import open_pack
from stages.data.shards import open_dataset
from stages.distill.student import build_student
from stages.distill.targets import loss_terms, meaning_of, needed_targets
from stages.models import build_model
from stages.training.optim import build_optimizer


def input_ms(config: TrainConfig, runs: int) -> float:
    """A clip of a batch, read, joined, decoded and rendered."""
    batch = partial(_batch, config, _clips(config))
    return 1e3 * median_of(cpu_seconds(batch, runs))[0] / config.batch_size


def step_ms(config: TrainConfig, runs: int) -> float:
    """Its forward, losses, backward, and share of the optimizer's step; of a student with a cache."""
    reader, batch = CacheReader(config.data.cache, needed_targets(config.losses)), _batch(config, _clips(config))
    constants = reader.constants()
    model = build_model(config.model.model_copy(update={"num_classes": len(reader.manifest.identity.classes)}))
    maps = reader.manifest.identity.targets["features"]["map"]
    student = build_student(model, config.losses, maps[3], constants).train()
    optimizer, weights = build_optimizer(student, config.optim, config.batch_size), config.losses.weights()
    meaning = meaning_of(reader.manifest, constants, torch.device("cpu"))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        terms = loss_terms(student(batch.clips), batch, config.losses, meaning)
        sum(weights[name] * term for name, term in terms.items()).backward()
        optimizer.step()

    return 1e3 * median_of(cpu_seconds(step, runs))[0] / config.batch_size


def _clips(config: TrainConfig) -> Clips:
    data, pack = open_dataset(config.data.train), config.data.pack
    return Clips(data, size=config.size, num_classes=len(data.classes), cache=CacheReader(config.data.cache,
                 needed_targets(config.losses)), decode=open_pack(pack).decode if pack else None)  # fmt: skip


def _batch(config: TrainConfig, clips: Clips) -> Batch:
    rows = np.concatenate([np.stack([np.full(len(u), s), u], 1) for s, u in enumerate(clips.data.usable_rows())])
    return clips.__getitems__([(int(s), int(r), 0) for s, r in rows[: config.batch_size]])
