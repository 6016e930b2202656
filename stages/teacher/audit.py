"""Held against the truth: the cached targets against the labels, and against the teacher once more."""

from __future__ import annotations

import random

import numpy as np
import torch

from cache.codecs import codec_of, from_stored
from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.reduction import Constants
from cache.view import BLOCK
from stages.metrics.accuracy import chance
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.teacher.teacher import Teacher
from stages.video.decode import decode_frames
from stages.video.render import render

NEAR_CHANCE = 2.0  # a teacher below so many times chance is more likely mistaken than weak


def teacher_accuracy(data: Dataset, manifest: Manifest, reader: CacheReader) -> float | None:
    """top-1 in percent over labelled clip·views (any of a clip's labels counts), with a warning where it is near chance."""
    counts, hits = np.zeros(len(data.classes), np.int64), 0
    for entry in data.shards:
        rows = data.rows(entry.name)
        first = np.array([row.labels[0] if row.labels else -1 for row in rows])
        truth = np.zeros((len(rows), len(data.classes)), bool)
        for row, labels in zip(truth, (row.labels for row in rows), strict=True):
            row[list(labels)] = True
        for view in range(manifest.views):
            stored = reader.view(entry.name, view)
            keep = stored.valid & (first >= 0)
            hits += int(truth[keep, stored.logits[keep].argmax(1)].sum())
            counts += np.bincount(first[keep], minlength=len(counts))
    if not counts.any():
        return None
    top1, by_chance = 100 * hits / int(counts.sum()), chance(counts)
    if top1 < NEAR_CHANCE * by_chance:
        console.print(f"[bold red]warning[/] the teacher's top-1 on its cached views is {top1:.2f} %, near chance "
                      f"({by_chance:.2f} %): look at its checkpoint, the order of the classes, its size and "
                      f"normalisation before students are trained on it")  # fmt: skip
    return top1


def verify_targets(data: Dataset, manifest: Manifest, reader: CacheReader, teacher: Teacher, count: int) -> float:
    """Recompute `count` random clip·views from their stored views; the largest difference of a logit.

    Raises ReskdError where one is further off than the codec and another batch's rounding explain.
    """
    ends, chosen = np.cumsum([e.clips for e in data.shards]), random.Random()
    worst, verified = 0.0, 0
    numbers = chosen.sample(range(int(ends[-1])), min(count, int(ends[-1])))
    for number in numbers:
        s = int(np.searchsorted(ends, number, side="right"))
        shard, r, v = (
            data.shards[s].name,
            number - int(ends[s]) + data.shards[s].clips,
            chosen.randrange(manifest.views),
        )
        if r in manifest.quarantine.get(shard, {}):
            continue
        block, i = reader.block(shard, v, r // BLOCK), r % BLOCK
        view, row = block.view_of(i), data.rows(shard)[r]
        pictures, _ = decode_frames(data.read(shard, r), row.start + view.frames, row.decoder)
        clips = np.zeros((teacher.batch_size, len(view.frames), 3, teacher.size, teacher.size), np.uint8)
        clips[0] = render(pictures, view, teacher.size)
        fresh = teacher.run(torch.from_numpy(clips), tuple(manifest.identity.targets))
        span = float(np.ptp(fresh["logits"][0])) + 1e-3
        rounding = 1e-3 if teacher.dtype == torch.float32 else 5e-2
        off = float(np.abs(fresh["logits"][0] - block.logits[i]).max())
        feature_off = 0.0
        if block.features is not None:
            feature_off = _feature_off(
                fresh["features"][0], block.features[i], teacher.constants, teacher.features.codec
            )
        if off > span / 500 + rounding * span or feature_off > rounding + 1e-3:
            raise ReskdError(f"shard {shard}, clip {row.key!r}, view {v}: the cached targets differ from the "
                             f"teacher's by {off:.4f} (logits) and {feature_off:.4f} (features, relative): the "
                             f"cache is not of this teacher and these videos; make it anew")  # fmt: skip
        worst, verified = max(worst, off), verified + 1
    console.print(f"verified {verified} clip·views: logits differ by at most {worst:.4f}")
    return worst


def _feature_off(fresh: np.ndarray, stored: np.ndarray, constants: Constants, codec: str) -> float:
    """The largest relative difference of a map, beyond what the range and steps of codes explain."""
    values = from_stored(stored, constants)
    step = 0.0
    if (levels := codec_of("features", codec).levels) is not None:
        low, high = (from_stored(np.full_like(stored, end), constants) for end in (-levels, levels))
        fresh, step = fresh.clip(low, high), constants["scale"] / 2
    return float((np.maximum(np.abs(fresh - values) - step, 0) / (1 + np.abs(fresh))).max())
