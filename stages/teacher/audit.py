"""Checks of cached targets: against the labels, and against what the teacher computes a second time."""

from __future__ import annotations

import random
from dataclasses import dataclass

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
from stages.shards.dataset import Dataset
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
    worst, chosen = 0.0, _random_clip_views(data, manifest, count)
    rounding = 1e-3 if teacher.dtype == torch.float32 else 5e-2
    for low in range(0, len(chosen), teacher.batch_size):
        stored = [_stored(reader, *place) for place in chosen[low : low + teacher.batch_size]]
        outputs = _recompute(data, stored, teacher, tuple(manifest.identity.targets))
        for i, one in enumerate(stored):
            span, difference, feature_difference = 0.0, 0.0, 0.0
            if one.logits is not None:
                span = float(np.ptp(outputs["logits"][i])) + 1e-3
                difference = float(np.abs(outputs["logits"][i] - one.logits).max())
            if one.features is not None:
                feature_difference = _feature_difference(
                    outputs["features"][i], one.features, teacher.constants, teacher.features.codec
                )
            if difference > span / 500 + rounding * span or feature_difference > rounding + 1e-3:
                raise ReskdError(f"shard {one.shard}, clip {data.rows(one.shard)[one.row].key!r}, view {one.number}: the cached "
                                 f"targets differ from the teacher's by {difference:.4f} (logits) and "
                                 f"{feature_difference:.4f} (features, relative): the cache was made with another teacher or "
                                 f"from other videos; make it anew")  # fmt: skip
            worst = max(worst, difference if one.logits is not None else feature_difference)
    what = "logits" if "logits" in manifest.identity.targets else "maps"
    console.print(f"verified {len(chosen)} clip·views: {what} differ by at most {worst:.4f}")
    return worst


def _random_clip_views(data: Dataset, manifest: Manifest, count: int) -> list[tuple[str, int, int]]:
    """(shard, row, view) of `count` random clips, without those in quarantine."""
    ends, generator, chosen = np.cumsum([e.clips for e in data.shards]), random.Random(), []
    for number in generator.sample(range(int(ends[-1])), min(count, int(ends[-1]))):
        s = int(np.searchsorted(ends, number, side="right"))
        shard, r = data.shards[s].name, number - int(ends[s]) + data.shards[s].clips
        v = generator.randrange(manifest.views)
        if r not in manifest.quarantine.get(shard, {}):
            chosen.append((shard, r, v))
    return chosen


@dataclass(frozen=True)
class _Stored:
    """A stored view of a clip, the view number `number`, with its targets."""

    shard: str
    row: int
    number: int
    view: View
    logits: np.ndarray | None
    features: np.ndarray | None


def _stored(reader: CacheReader, shard: str, r: int, v: int) -> _Stored:
    """With copies of the targets, so that a batch holds no whole blocks of them in memory."""
    block, i = reader.block(shard, v, r // BLOCK), r % BLOCK
    logits, features = (None if of is None else of[i].copy() for of in (block.logits, block.features))
    return _Stored(shard, r, v, block.view_of(i), logits, features)


def _recompute(
    data: Dataset, stored: list[_Stored], teacher: Teacher, targets: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The teacher's outputs for stored views, in one batch of its size, which is padded with zeros."""
    clips = np.zeros((teacher.batch_size, len(stored[0].view.frames), 3, teacher.size, teacher.size), np.uint8)
    for i, one in enumerate(stored):
        row = data.rows(one.shard)[one.row]
        pictures, _ = decode_frames(data.read(one.shard, one.row), row.start + one.view.frames, row.decoder)
        clips[i] = render(pictures, one.view, teacher.size)
    return teacher.run(torch.from_numpy(clips), targets)


def _feature_difference(fresh: np.ndarray, stored: np.ndarray, constants: Constants, codec: str) -> float:
    """The largest relative difference of a map, beyond what the range and the steps of the codes explain."""
    values = from_stored(stored, constants)
    half_step = 0.0
    if (levels := codec_of("features", codec).levels) is not None:
        low, high = (from_stored(np.full_like(stored, end), constants) for end in (-levels, levels))
        fresh, half_step = fresh.clip(low, high), constants["scale"] / 2
    return float((np.maximum(np.abs(fresh - values) - half_step, 0) / (1 + np.abs(fresh))).max())
