"""A short probe of stage one: the time of decoding and of the teacher on this machine, and maps to try encodings on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from stages.teacher.encodings import ProbeOutput
from stages.teacher.sample_maps import HOLD_OUT_EVERY
from stages.teacher.target_writer import THREADS
from stages.teacher.teacher import Teacher
from stages.teacher.write_cost import write_seconds
from stages.video.decode import decode_frames
from stages.video.errors import DecodeError
from stages.video.render import render

TIMED = 4  # clips whose views are all decoded, to time it


@dataclass(frozen=True)
class Probe:
    """What a probe measured on this machine, and the teacher's outputs."""

    output: ProbeOutput
    decode: float  # seconds of one core for a clip·view, where all views of a clip are decoded and rendered together
    forward: float  # seconds for a clip·view, in full batches
    write: float  # seconds of one core to encode, compress and digest a clip·view
    failed: int  # clips that no decoder can read


def run_probe(
    config: CacheConfig, data: Dataset, teacher: Teacher, count: int, settings: Mapping[str, Mapping[str, Any]]
) -> Probe:
    """Decode, render, forward and encode `count` clip·views, spread over clips and views as in `sample_maps`.

    `settings`: the identity's settings of the targets. Raises ReskdError where none of them can be decoded.
    """
    clips = [(e.name, int(r)) for e, usable in zip(data.shards, data.usable_rows(), strict=True) for r in usable]
    order = np.argsort(splitmix64(hash_parts(config.policy.seed, len(clips)), len(clips)), kind="stable")
    chosen = [
        (*clips[order[i % len(clips)]], i // len(clips) + i) for i in range(min(count, len(clips) * config.views))
    ]
    drawn, pictures, held_out, seconds, failed = [], [], [], [], 0
    for number, (shard, r, v) in enumerate(chosen):
        numbers = [(v + j) % config.views for j in range(config.views if number < TIMED else 1)]
        start = time.perf_counter()
        try:
            views, first = _render_views(config, data, shard, r, numbers, teacher.size)
        except DecodeError:
            failed += 1
            continue
        if number < TIMED:
            seconds.append((time.perf_counter() - start) / config.views)
        drawn.append(views[0])
        pictures.append(first)
        held_out.append(number % len(clips) % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1)
    if not drawn:
        raise ReskdError(f"{data.path}: none of {len(chosen)} clips of the probe can be decoded: check the videos, or give "
                         "--probe 0")  # fmt: skip
    logits, features, forward = _forwards(teacher, np.stack(pictures))
    output = ProbeOutput(_columns(drawn), logits, features, np.array(held_out))
    write = write_seconds(output, teacher, settings)
    return Probe(output, float(np.median(seconds or [0.0])), forward, write, failed)


def _columns(views: list[View]) -> dict[str, np.ndarray]:
    """The arrays of the views, as in a cache."""
    return {
        "frames": np.stack([view.frames for view in views]),
        "box": np.stack([view.box for view in views]),
        "flip": np.array([view.flip for view in views]),
        "valid": np.ones(len(views), bool),
    }


def _render_views(
    config: CacheConfig, data: Dataset, shard: str, r: int, numbers: list[int], size: int
) -> tuple[list[View], np.ndarray]:
    """The views of these numbers, and the first one's pixels, uint8 [T,3,S,S]. All are rendered from one decode."""
    row, num_frames = data.rows(shard)[r], config.policy.num_frames
    views = [sample_view(config.policy, shard=shard, key=row.key, index=v, num_frames=row.frames, aspect=row.aspect)
             for v in numbers]  # fmt: skip
    frames, _ = decode_frames(data.read(shard, r), row.start + np.concatenate([v.frames for v in views]), row.decoder)
    clips = [render(frames[j * num_frames : (j + 1) * num_frames], view, size) for j, view in enumerate(views)]
    return views, clips[0]


def _forwards(teacher: Teacher, clips: np.ndarray) -> tuple[np.ndarray, torch.Tensor, float]:
    """logits [n,K] and maps [n,T,H,W,D] on the CPU, and the seconds of a clip·view in full batches."""
    size, seconds, logits, features = teacher.batch_size, [], [], []
    starts = list(range(0, len(clips), size))
    for number, start in enumerate([0, *starts]):  # the first batch runs twice: its first run warms up and is not timed
        batch = torch.zeros(size, *clips.shape[1:], dtype=torch.uint8)
        n = min(size, len(clips) - start)
        batch[:n] = torch.from_numpy(clips[start : start + n])
        started = time.perf_counter()
        outputs = teacher_outputs(teacher.model, batch.to(teacher.device), ("logits", "features"), teacher.dtype)
        outputs = {name: value[:n].cpu() for name, value in outputs.items()}
        if number:
            seconds.append(time.perf_counter() - started)
            logits.append(outputs["logits"])
            features.append(outputs["features"])
    all_logits, all_maps = torch.cat(logits), torch.cat(features)
    if not (all_logits.isfinite().all() and all_maps.isfinite().all()):
        raise ReskdError("the teacher's outputs in the probe are not finite: check its checkpoint, or set "
                         "teacher.dtype=float32")  # fmt: skip
    return all_logits.numpy(), all_maps, float(np.median(seconds)) / size


def teacher_hours(config: CacheConfig, probe: Probe, clip_views: int, teacher: Teacher) -> float:
    """The hours that one rank on this machine needs for `clip_views`; a recalibration doubles them.

    The slowest one of decoding, the teacher, and encoding and writing sets the pace. The first and the last share the cores;
    on a CPU the teacher, too.
    """
    forward, decode, write = (clip_views * seconds for seconds in (probe.forward, probe.decode, probe.write))
    on_cores = decode + write + (forward * torch.get_num_threads() if teacher.device.type == "cpu" else 0)
    seconds = max(forward, decode / max(1, decoding_workers(config.loader)), write / THREADS, on_cores / cores())
    return (2 if teacher.pending is not None else 1) * seconds / 3600
