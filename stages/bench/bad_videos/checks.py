"""What the workers of `bench bad-videos` do: each task checks a file. They import this module, and so no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stages.bench.bad_videos.frame_check import Outcome, check_video, probe_cost
from stages.bench.bad_videos.mutants import mutant
from stages.prepare.workers import video_limits


def check_file(path: Path, seed: int) -> Outcome:
    return _limited(check_video, path.read_bytes(), seed)


def check_mutant(path: Path, seed: int) -> Outcome:
    return _limited(check_video, mutant(path.read_bytes(), seed)[1], seed)


def check_bomb(path: Path, _: int) -> Outcome:
    return _limited(probe_cost, path.read_bytes())


def _limited(check: Callable[..., Outcome], data: bytes, *rest: int) -> Outcome:
    with video_limits(len(data)):
        return check(data, *rest)
