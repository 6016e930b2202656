"""One label of several. Upstream draws one whenever it fetches a clip; this draw is a function and can be repeated."""

from __future__ import annotations

import torch

from stages.stream.batch import Batch
from stages.stream.epoch_plan import hash_parts

_SALT = 0x6C6162656C  # so that draws and the order of an epoch have different bits


def random_labels(batch: Batch, seed: int, epoch: int) -> torch.Tensor:
    """int64 [B]: a random one of each clip's labels, of a batch on the CPU; all labels of a clip are equally likely.

    A pure function of (seed, epoch, shard, row). Workers, ranks and the clip's place in the order don't change it. Clips
    with one label or none keep that of `batch.labels`.
    """
    labels = batch.labels.clone()
    for i in torch.nonzero(batch.multi_hot.sum(1) > 1).flatten().tolist():
        shard, row, _ = batch.index[i].tolist()
        candidates = torch.nonzero(batch.multi_hot[i]).flatten()
        drawn = hash_parts(_SALT, seed, epoch, shard, row) * len(candidates) >> 64  # 0 <= drawn < len (Lemire 2019)
        labels[i] = candidates[drawn]
    return labels.pin_memory() if batch.labels.is_pinned() else labels
