"""The time of decoding and rendering for each kind of video, in milliseconds of one core."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cache.view import ViewPolicy, sample_view
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.figures import Figure, measured, profiled, show
from stages.bench.videos import LARGE, SMALL, Kind, make_videos
from stages.video.decode import decode_frames, probe
from stages.video.decord_decode import decord
from stages.video.render import render

SIZES = (224, 112)


@dataclass(frozen=True)
class Setup:
    """`views`: decoded at once, as in stage one."""

    kinds: tuple[Kind, ...] = (*SMALL, *LARGE)
    views: int = 8
    seconds: float = 10.0
    runs: int = 2 * RUNS


FULL = Setup()
QUICK = Setup(runs=RUNS)


def run_decode(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure one clip of each kind, for one view of 8 frames and for all views. The clips are made in `folder` and kept.

    "decord" is get_batch of decord on the same frames, sorted, each once. "reskd" is `decode_frames`, which adds checks.
    """
    setup, figures = QUICK if quick else FULL, []
    for kind in setup.kinds:
        video = next(make_videos(folder, kind, 1, setup.seconds).rglob("*.mp4")).read_bytes()
        figures += _figures(kind, video, setup, None)
    if trace is not None:
        _figures(kind, video, setup, trace)
    show("decode", figures, output)
    return figures


def plain_decord(data: bytes, frames: np.ndarray) -> np.ndarray:
    """Decode as decord's README does. `frames`: n frame numbers, sorted, each once. Returns uint8 [n, H, W, 3]."""
    return decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(frames).asnumpy()


def _figures(kind: Kind, video: bytes, setup: Setup, trace: Path | None) -> list[Figure]:
    info, policy, figures = probe(video), ViewPolicy(num_frames=8), []
    views = [sample_view(policy, shard="bench", key="0", index=v, num_frames=info.frames, aspect=info.width / info.height)
             for v in range(setup.views)]  # fmt: skip
    work = {}
    for name, drawn in (("8 frames", views[:1]), (f"{setup.views} views of 8 frames", views)):
        frames = np.unique(np.concatenate([view.frames for view in drawn]))
        if decord is not None:
            work[f"{name}, decord"] = partial(plain_decord, video, frames)
        work[f"{name}, reskd"] = partial(decode_frames, video, frames, info.decoder)
    with profiled(trace):
        for name, task in work.items():
            figures.append(measured(f"{kind}: {name}", [1e3 * s for s in cpu_seconds(task, setup.runs)], "ms"))
        pictures, _ = decode_frames(video, views[0].frames, info.decoder)
        for size in SIZES:  # the mean over the views, because boxes differ in size
            seconds = cpu_seconds(lambda size=size: [render(pictures, view, size) for view in views], setup.runs)
            figures.append(
                measured(f"{kind}: rendering 8 frames at {size}", [1e3 * s / len(views) for s in seconds], "ms")
            )
    return figures
