"""What the study will cost, in hours of a core: measured steps of each net, times clips and epochs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from cache.store import write_atomically
from stages.bench.imagenet import NAMES
from stages.bench.real.config import RealConfig
from stages.bench.real.runs import EARLY, StudentRun
from stages.config.json_result import read_result
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import VideoModel, to_device
from stages.runtime.terminal import console

BESIDE = 1.2  # of a step's time: reading, validation, the optimizer
CLIPS, STEPS = 4, 3  # of the timing


@dataclass(frozen=True)
class Part:
    """A part of the study, in the order in which they are done."""

    name: str
    runs: Sequence[StudentRun]


def plan_parts(config: RealConfig, parts: Sequence[Part], clips: Mapping[str, int]) -> list[str]:
    """Print the parts with their hours. Returns the names of those that fit into `config.core_hours`.

    The hours are kept in plan.json: a run that goes on has the same parts.
    """
    file = config.output / "plan.json"
    asked = {part.name: [len(part.runs), *sorted({run.epochs for run in part.runs})] for part in parts}
    known = read_result(file) if file.exists() else {}
    if known.get("asked") != asked:
        costs, done = _step_seconds(config), set()
        hours = {part.name: _hours(config, part.runs, clips, costs, done) for part in parts}
        known = {"asked": asked, "hours": hours, "step_ms": {n: 1e3 * s for n, s in costs.items()}}
        write_atomically(file, (json.dumps(known, indent=1) + "\n").encode())
    hours = known["hours"]
    fitting, total = [], 0.0
    table = Table("part", "students", "core-hours", title=f"budget: {config.core_hours:g} core-hours")
    for part in parts:
        fits = total + hours[part.name] <= config.core_hours
        total += hours[part.name] if fits else 0.0
        fitting += [part.name] if fits else []
        table.add_row(part.name, str(len(part.runs)), f"{hours[part.name]:.2f}" + ("" if fits else ", left out"))
    table.add_row("all that is done", "", f"{total:.2f}")
    console.print(table)
    return fitting


def _hours(
    config: RealConfig, runs: Iterable[StudentRun], clips: Mapping[str, int], costs: Mapping[str, float], done: set
) -> float:
    """The hours of these students, with the teachers and caches that they need and that are not in `done` yet."""
    seconds = 0.0
    for run in runs:
        arm, n = run.arm, clips[run.side]
        step = costs["large" if arm.large else str(arm.size or config.size)]
        seconds += BESIDE * n * run.epochs * (step + (costs["teacher"] if arm.in_the_loop else 0.0))
        if arm.teacher in ("tuned", "early") and (arm.teacher, run.side) not in done:
            done.add((arm.teacher, run.side))
            epochs = config.teacher_epochs // (EARLY if arm.teacher == "early" else 1)
            seconds += BESIDE * n * epochs * costs["teacher, step"]
        stored = (run.side, arm.teacher, str(arm.features), arm.views)
        if arm.teacher and not arm.in_the_loop and stored not in done:
            done.add(stored)
            seconds += BESIDE * n * (arm.views or config.views) * costs["teacher"]
    return seconds / 3600


def _step_seconds(config: RealConfig) -> dict[str, float]:
    """Seconds of one clip, on one thread: a training step of each student and of the teacher, and the teacher's forward."""
    threads, sizes = torch.get_num_threads(), {config.size, *config.other_sizes}
    torch.set_num_threads(1)
    try:
        student, teacher = _net("lite0"), _net("lite2")
        return {str(size): _timed(student, size, True) for size in sizes} | {
            "large": _timed(student, config.teacher_size, True),
            "teacher, step": _timed(teacher, config.teacher_size, True),
            "teacher": _timed(teacher, config.teacher_size, False),
        }
    finally:
        torch.set_num_threads(threads)


def _net(name: str) -> VideoModel:
    config = ModelConfig(backbone=NAMES[name], num_classes=10, num_frames=4)
    return to_device(build_model(config), torch.device("cpu"))


def _timed(net: VideoModel, size: int, trained: bool) -> float:
    net.train(trained)
    batch, seconds = torch.zeros(CLIPS, 4, 3, size, size, dtype=torch.uint8), []
    for _ in range(STEPS):
        started = time.process_time()  # of one thread: other programs don't count
        if trained:
            net(batch).logits.square().mean().backward()
        else:
            with torch.inference_mode():
                net(batch)
        seconds.append(time.process_time() - started)
    return min(seconds) / CLIPS
