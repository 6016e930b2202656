"""One label of several: the seed draws one anew whenever it fetches a clip; here the draw can be replayed."""

from __future__ import annotations

from dataclasses import replace

import torch

from stages.stream.batch import Batch
from stages.stream.epoch_plan import hash_parts

_SALT = 0x6C6162656C  # lest a draw share its bits with the order of the epoch


def with_one_label(batch: Batch, seed: int, epoch: int) -> Batch:
    """The batch (on the CPU) whose clips of several labels have one of them in `labels`, each as likely as the others.

    A pure function of (seed, epoch, shard, row): not of workers, ranks, or where the clip stands in the order. Clips
    of one label or none stay as they are, and so does `multi_hot`.
    """
    labels = batch.labels.clone()
    for i in torch.nonzero(batch.multi_hot.sum(1) > 1).flatten().tolist():
        shard, row, _ = batch.index[i].tolist()
        among = torch.nonzero(batch.multi_hot[i]).flatten()
        drawn = hash_parts(_SALT, seed, epoch, shard, row) * len(among) >> 64  # below their number (Lemire 2019)
        labels[i] = among[drawn]
    return replace(batch, labels=labels)
