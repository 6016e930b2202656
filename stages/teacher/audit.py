"""Checks of cached targets: against the labels, and against what the teacher computes a second time."""

from __future__ import annotations

import random

import numpy as np
import torch

from cache.codecs import codec_of, from_stored
from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.reduction import Constants
from cache.view import BLOCK, View
from stages.metrics.accuracy import chance
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset, Row
from stages.teacher.teacher import Teacher
from stages.video.decode import decode_frames
from stages.video.render import render

NEAR_CHANCE = 2.0  # a top-1 below this multiple of chance points to a mistake rather than to a weak teacher


def teacher_accuracy(data: Dataset, manifest: Manifest, reader: CacheReader) -> float | None:
    """top-1 in percent over labelled clip·views (each label of a clip is right); None where no clip is labelled, or the cache
    has maps alone.

    Prints a warning where it is near chance.
    """
    if "logits" not in manifest.identity.targets:
        return None
    counts, hits = np.zeros(len(data.classes), np.int64), 0
    for entry in data.shards:
        rows = data.rows(entry.name)
        first_label = np.array([row.labels[0] if row.labels else -1 for row in rows])
        truth = np.zeros((len(rows), len(data.classes)), bool)
        for truth_row, row in zip(truth, rows, strict=True):
            truth_row[list(row.labels)] = True
        for view in range(manifest.views):
            stored = reader.view(entry.name, view)
            keep = stored.valid & (first_label >= 0)
            hits += int(truth[keep, stored.logits[keep].argmax(1)].sum())
            counts += np.bincount(first_label[keep], minlength=len(counts))
    if not counts.any():
        return None
    top1, chance_top1 = 100 * hits / int(counts.sum()), chance(counts)
    if top1 < NEAR_CHANCE * chance_top1:
        console.print(f"[bold red]warning[/] the teacher's top-1 on its cached views is {top1:.2f} %, near chance "
                      f"({chance_top1:.2f} %): check its checkpoint, the order of the classes, its size and "
                      f"normalisation before students are trained on it")  # fmt: skip
    return top1


def verify_targets(data: Dataset, manifest: Manifest, reader: CacheReader, teacher: Teacher, count: int) -> float:
    """Recompute `count` random clip·views from their stored views; returns the largest difference of a logit, or of a map's
    number (relative) where the cache has maps alone.

    Raises ReskdError where a difference is larger than the codec and the rounding of another batch explain.
    """
    ends, generator = np.cumsum([e.clips for e in data.shards]), random.Random()
    worst, verified = 0.0, 0
    numbers = generator.sample(range(int(ends[-1])), min(count, int(ends[-1])))
    for number in numbers:
        s = int(np.searchsorted(ends, number, side="right"))
        shard, r = data.shards[s].name, number - int(ends[s]) + data.shards[s].clips
        v = generator.randrange(manifest.views)
        if r in manifest.quarantine.get(shard, {}):
            continue
        block, i = reader.block(shard, v, r // BLOCK), r % BLOCK
        row = data.rows(shard)[r]
        outputs = _recompute(data.read(shard, r), row, block.view_of(i), teacher, tuple(manifest.identity.targets))
        rounding = 1e-3 if teacher.dtype == torch.float32 else 5e-2
        span, difference, feature_difference = 0.0, 0.0, 0.0
        if block.logits is not None:
            span = float(np.ptp(outputs["logits"])) + 1e-3
            difference = float(np.abs(outputs["logits"] - block.logits[i]).max())
        if block.features is not None:
            feature_difference = _feature_difference(
                outputs["features"], block.features[i], teacher.constants, teacher.features.codec
            )
        if difference > span / 500 + rounding * span or feature_difference > rounding + 1e-3:
            raise ReskdError(f"shard {shard}, clip {row.key!r}, view {v}: the cached targets differ from the "
                             f"teacher's by {difference:.4f} (logits) and {feature_difference:.4f} (features, relative): "
                             f"the cache was made with another teacher or from other videos; make it anew")  # fmt: skip
        worst, verified = max(worst, difference if block.logits is not None else feature_difference), verified + 1
    what = "logits" if "logits" in manifest.identity.targets else "maps"
    console.print(f"verified {verified} clip·views: {what} differ by at most {worst:.4f}")
    return worst


def _recompute(video: bytes, row: Row, view: View, teacher: Teacher, targets: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The teacher's outputs for one view of a clip, without the batch's axis. The batch is padded with zeros."""
    pictures, _ = decode_frames(video, row.start + view.frames, row.decoder)
    clips = np.zeros((teacher.batch_size, len(view.frames), 3, teacher.size, teacher.size), np.uint8)
    clips[0] = render(pictures, view, teacher.size)
    return {name: values[0] for name, values in teacher.run(torch.from_numpy(clips), targets).items()}


def _feature_difference(fresh: np.ndarray, stored: np.ndarray, constants: Constants, codec: str) -> float:
    """The largest relative difference of a map, beyond what the range and the steps of the codes explain."""
    values = from_stored(stored, constants)
    half_step = 0.0
    if (levels := codec_of("features", codec).levels) is not None:
        low, high = (from_stored(np.full_like(stored, end), constants) for end in (-levels, levels))
        fresh, half_step = fresh.clip(low, high), constants["scale"] / 2
    return float((np.maximum(np.abs(fresh - values) - half_step, 0) / (1 + np.abs(fresh))).max())
