"""One label of several. Upstream draws one whenever it fetches a clip; this draw is a function and can be repeated."""

from __future__ import annotations

from dataclasses import replace

import torch

from stages.stream.batch import Batch
from stages.stream.epoch_plan import hash_parts

_SALT = 0x6C6162656C  # so that draws and the order of an epoch have different bits


def with_one_label(batch: Batch, seed: int, epoch: int) -> Batch:
    """The batch, on the CPU, with a random one of each clip's labels in `labels`; all labels are equally likely.

    A pure function of (seed, epoch, shard, row). Workers, ranks and the clip's place in the order don't change it. Clips
    with one label or none keep their `labels`; `multi_hot` doesn't change.
    """
    labels = batch.labels.clone()
    for i in torch.nonzero(batch.multi_hot.sum(1) > 1).flatten().tolist():
        shard, row, _ = batch.index[i].tolist()
        candidates = torch.nonzero(batch.multi_hot[i]).flatten()
        drawn = hash_parts(_SALT, seed, epoch, shard, row) * len(candidates) >> 64  # 0 <= drawn < len (Lemire 2019)
        labels[i] = candidates[drawn]
    return replace(batch, labels=labels)
