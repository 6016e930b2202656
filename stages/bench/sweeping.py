"""A sweep with the teacher in the loop against "ours": stage one, the pack, and one cohort. Both in core seconds.

In the loop, each student decodes every clip and runs the teacher in every epoch. All epochs take the same time, so one
epoch of one student is measured and multiplied. Ours is measured completely.
The bound is computed from parts that are measured alone, in milliseconds: d to decode one view, D to decode all stored
views, k to decode these and pack their crops, t a teacher's forward of a view, s a student's step, p its input from the
pack. For n students, e epochs and V stored views a clip takes:
  in the loop  n e (d + t + s)        ours  (D + V t) + k + e p + n e s
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from stages.bench.clocks import RUNS, core_seconds
from stages.bench.figures import Figure, at_least, measured, profiled, show
from stages.bench.parts import forward_ms, input_ms, source_ms, step_ms
from stages.bench.students import DEMO, DISTILLED, Bench, make_bench
from stages.bench.videos import SMALL
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import model_stats
from stages.packs.pack import pack
from stages.runtime.distributed import join_ranks
from stages.shards.dataset import open_dataset
from stages.stream.pack_reader import open_pack
from stages.student.config import TrainConfig
from stages.student.train_student import train_student
from stages.sweep.sweep import run_sweep
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.config import CacheConfig


@dataclass(frozen=True)
class Setup:
    """`students` of `epochs` epochs at `size` px. The teacher is the same network at `teacher_size` px."""

    model: ModelConfig = DEMO
    size: int = 32
    teacher_size: int = 128
    students: int = 5
    epochs: int = 20
    views: int = 4
    clips: int = 8
    times: int = 8
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(epochs=6, times=2, runs=1)


def run_sweeping(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure with 340x256 clips of GOP 12. The clips are made in `folder` and kept."""
    setup = QUICK if quick else FULL
    ours, loops = [], []
    with join_ranks():
        for _ in range(setup.runs):
            with tempfile.TemporaryDirectory() as temporary:
                bench = make_bench(Path(temporary), folder, SMALL[0], setup.clips, setup.times, setup.seconds,
                                 teacher=setup.model, teacher_size=setup.teacher_size)  # fmt: skip
                bench = replace(bench, views=setup.views)
                bench.checkpoint(), bench.data()
                loops.append(_in_the_loop(bench, setup))
                with profiled(trace if len(ours) + 1 == setup.runs else None):
                    ours.append(_ours(bench, setup))
                if len(ours) == setup.runs:
                    parts = _parts(bench, setup)
    figures = _figures(ours, loops, parts, setup)
    show("sweep", figures, output)
    return figures


def _in_the_loop(bench: Bench, setup: Setup) -> float:
    """The core seconds of all students and epochs, computed from one epoch of one student."""
    teacher = {"checkpoint": bench.checkpoint()}
    config = bench.student("loop", setup.model, setup.size, teacher=teacher, losses=DISTILLED)
    began = core_seconds()
    train_student(config)
    return (core_seconds() - began) * setup.students * setup.epochs


def _ours(bench: Bench, setup: Setup) -> dict[str, float]:
    """The core seconds of each stage."""
    clock, seconds = core_seconds(), {}

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = core_seconds() - clock, core_seconds()

    cache_teacher(_cache_config(bench, setup))
    lap("stage one")
    pack(bench.pack_config("pack", frames="crops", size=setup.size, cache=bench.folder / "teacher.zarr"))
    lap("pack")
    run_sweep(_students(bench, setup))
    lap("students")
    return seconds


def _cache_config(bench: Bench, setup: Setup) -> CacheConfig:
    """The config of a cache with maps at the students' grid, in int8."""
    grid = model_stats(build_model(setup.model.model_copy(update={"num_classes": 2})), setup.size).grid
    return bench.cache_config(targets={"features": {"codec": "int8", "grid": grid[1:], "sample": 32}})


def _students(bench: Bench, setup: Setup) -> dict[str, TrainConfig]:
    data = {
        "train": bench.data(),
        "cache": bench.folder / "teacher.zarr",
        "pack": bench.folder / "pack",
        "order_seed": 0,
    }
    return bench.cohort("sweep", setup.students, setup.model, setup.size, data=data, schedule={"epochs": setup.epochs})


def _parts(bench: Bench, setup: Setup) -> dict[str, float]:
    """The parts in milliseconds of one core per clip: see the module's docstring."""
    student, identity = _students(bench, setup)["seed=0"], open_pack(bench.folder / "pack").manifest.identity
    sizes = setup.size, setup.teacher_size
    return {
        **source_ms(open_dataset(bench.data()), identity.policy, setup.views, sizes, identity.quality),
        "t": forward_ms(setup.model, setup.teacher_size),
        "s": step_ms(student, RUNS),
        "p": input_ms(student, RUNS),
    }


def _figures(ours: list[dict[str, float]], loops: list[float], parts: dict[str, float], setup: Setup) -> list[Figure]:
    n, e, v, clips = setup.students, setup.epochs, setup.views, setup.clips * setup.times
    loop = n * e * (parts["d"] + parts["t"] + parts["s"])
    ours_bound = parts["D"] + v * parts["t"] + parts["k"] + e * parts["p"] + n * e * parts["s"]
    ratios = [a / sum(b.values()) for a, b in zip(loops, ours, strict=True)]
    names = ("d", "D", "k", "t", "s", "p")
    return [
        *(
            measured(f"ours: {name}", [1e3 * seconds[name] / clips for seconds in ours], "core ms a clip")
            for name in ours[0]
        ),
        measured("in the loop, from one epoch of one student", [1e3 * s / clips for s in loops], "core ms a clip"),
        *(Figure(f"part {name}", parts[name], "ms a clip") for name in names),
        Figure(
            "the teacher's FLOPs ÷ a student's", _gmacs(setup, setup.teacher_size) / _gmacs(setup, setup.size), "times"
        ),
        at_least(f"{n} students, {e} epochs: in the loop ÷ ours", ratios, "times", 10),
        Figure("its bound", loop / ours_bound, "times"),
        at_least("÷ its bound", [ratio / (loop / ours_bound) for ratio in ratios], "", 0.9),
    ]


def _gmacs(setup: Setup, size: int) -> float:
    return model_stats(build_model(setup.model.model_copy(update={"num_classes": 2})), size).gmacs
