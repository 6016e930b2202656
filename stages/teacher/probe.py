"""A short measured probe of stage one: what decoding and the teacher take here, and maps to try encodings on."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from cache.errors import ReskdError
from cache.view import View, sample_view
from stages.distill.targets import teacher_outputs
from stages.runtime.distributed import cores
from stages.shards.dataset import Dataset
from stages.stream.epoch_plan import hash_parts, splitmix64
from stages.stream.loading import decoding_workers
from stages.teacher.config import CacheConfig
from stages.teacher.encodings import Maps
from stages.teacher.sample_maps import HELD_OUT
from stages.teacher.teacher import Teacher
from stages.video.decode import DecodeError, decode_frames
from stages.video.render import render

TIMED = 4  # clips of which all views are decoded, for the clock


@dataclass(frozen=True)
class Probe:
    """What was measured: of the teacher on this machine, and of its maps."""

    maps: Maps
    decode: float  # seconds of one core for a clip·view, where a clip's views are decoded and rendered together
    forward: float  # seconds for a clip·view, in full batches
    failed: int  # clips that no decoder could serve


def run_probe(config: CacheConfig, data: Dataset, teacher: Teacher, count: int) -> Probe:
    """Decode, render and forward `count` clip·views, spread over the clips and views as `sample_maps` spreads its own.

    Raises ReskdError where none of them can be decoded.
    """
    clips = [(e.name, int(r)) for e, usable in zip(data.shards, data.usable_rows(), strict=True) for r in usable]
    order = np.argsort(splitmix64(hash_parts(config.policy.seed, len(clips)), len(clips)), kind="stable")
    chosen = [
        (*clips[order[i % len(clips)]], i // len(clips) + i) for i in range(min(count, len(clips) * config.views))
    ]
    drawn, pictures, held, clock, failed = [], [], [], [], 0
    for number, (shard, r, v) in enumerate(chosen):
        numbers = [(v + j) % config.views for j in range(config.views if number < TIMED else 1)]
        began = time.perf_counter()
        try:
            views, first = _rendered(config, data, shard, r, numbers, teacher.size)
        except DecodeError:
            failed += 1
            continue
        if number < TIMED:
            clock.append((time.perf_counter() - began) / config.views)
        drawn.append(views[0])
        pictures.append(first)
        held.append(number % len(clips) % HELD_OUT == HELD_OUT - 1)
    if not drawn:
        raise ReskdError(f"{data.path}: none of {len(chosen)} clips of the probe can be decoded: look at the videos, or give "
                         "--probe 0")  # fmt: skip
    logits, features, forward = _forwards(teacher, np.stack(pictures))
    columns = {
        "frames": np.stack([view.frames for view in drawn]),
        "box": np.stack([view.box for view in drawn]),
        "flip": np.array([view.flip for view in drawn]),
        "valid": np.ones(len(drawn), bool),
    }
    return Probe(Maps(columns, logits, features, np.array(held)), float(np.median(clock or [0.0])), forward, failed)


def _rendered(
    config: CacheConfig, data: Dataset, shard: str, r: int, numbers: list[int], size: int
) -> tuple[list[View], np.ndarray]:
    """The views of these numbers, and the pixels of the first, uint8 [T,3,S,S]; all are rendered from one decode."""
    row, time_ = data.rows(shard)[r], config.policy.num_frames
    views = [sample_view(config.policy, shard=shard, key=row.key, index=v, num_frames=row.frames, aspect=row.aspect)
             for v in numbers]  # fmt: skip
    frames, _ = decode_frames(data.read(shard, r), row.start + np.concatenate([v.frames for v in views]), row.decoder)
    shown = [render(frames[j * time_ : (j + 1) * time_], view, size) for j, view in enumerate(views)]
    return views, shown[0]


def _forwards(teacher: Teacher, clips: np.ndarray) -> tuple[np.ndarray, torch.Tensor, float]:
    """logits [n,K], maps [n,T,H,W,D] on the CPU, and seconds a clip·view in full batches, of which the first is not timed."""
    size, seconds, logits, features = teacher.batch_size, [], [], []
    starts = list(range(0, len(clips), size))
    for number, start in enumerate([0, *starts]):  # the first twice: what is done once only isn't the pace
        batch = torch.zeros(size, *clips.shape[1:], dtype=torch.uint8)
        n = min(size, len(clips) - start)
        batch[:n] = torch.from_numpy(clips[start : start + n])
        began = time.perf_counter()
        found = teacher_outputs(teacher.model, batch.to(teacher.device), ("logits", "features"), teacher.dtype)
        found = {name: value[:n].cpu() for name, value in found.items()}
        if number:
            seconds.append(time.perf_counter() - began)
            logits.append(found["logits"])
            features.append(found["features"])
    every, maps = torch.cat(logits), torch.cat(features)
    if not (every.isfinite().all() and maps.isfinite().all()):
        raise ReskdError("the teacher's answers to the probe are not finite: look into its checkpoint, or set "
                         "teacher.dtype=float32")  # fmt: skip
    return every.numpy(), maps, float(np.median(seconds)) / size


def teacher_hours(config: CacheConfig, probe: Probe, clip_views: int, teacher: Teacher) -> float:
    """For so many clip·views, of one rank on this machine. Beside a GPU, decoding or the teacher sets the pace; on a CPU they
    share the cores. A recalibration sees every view once more.
    """
    forward, decode = clip_views * probe.forward, clip_views * probe.decode
    pace = max(forward, decode / max(1, decoding_workers(config.loader)))
    if teacher.device.type == "cpu":
        pace = max(pace, (forward * torch.get_num_threads() + decode) / cores())
    return (2 if teacher.pending is not None else 1) * pace / 3600
