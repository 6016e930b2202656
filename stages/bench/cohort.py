"""A cohort against single runs: eight students on one stream, against eight runs that each decode all clips.

Both are measured in core seconds (see `clocks.core_seconds`). A single run computes the input and a step for each clip. A
cohort of n computes the input once and n steps: bound = (input + n step) / (n (input + step)).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from stages.bench.clocks import RUNS, core_seconds
from stages.bench.figures import Figure, at_most, measured, profiled, show
from stages.bench.parts import input_ms, step_ms
from stages.bench.students import DEMO, Bench, make_bench
from stages.bench.videos import SMALL
from stages.models.config import ModelConfig
from stages.runtime.distributed import join_ranks
from stages.student.config import TrainConfig
from stages.student.train_student import train_cohort

WITHIN = 1.10  # of the bound


@dataclass(frozen=True)
class Setup:
    """`students` of one network at `size` px. The data set has `clips` videos, each under `times` names."""

    model: ModelConfig = DEMO
    size: int = 56
    students: int = 8
    clips: int = 8
    times: int = 8
    epochs: int = 2
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(students=4, times=4, epochs=1)


def run_cohort(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure with 340x256 clips of GOP 12, from videos and from a pack. The videos are made in `folder` and kept."""
    setup, figures = QUICK if quick else FULL, []
    with tempfile.TemporaryDirectory() as temporary, join_ranks():
        bench = make_bench(Path(temporary), folder, SMALL[0], setup.clips, setup.times, setup.seconds)
        for source, data in (("the videos", {}), ("the pack", {"pack": bench.packed("all", setup.size)})):
            figures += _figures(bench, source, data, setup)
        with profiled(trace):
            if trace is not None:
                train_cohort(_students(bench, "traced", setup.students, data, setup))
    show("cohort", figures, output)
    return figures


def _figures(bench: Bench, source: str, data: dict, setup: Setup) -> list[Figure]:
    """A run has a start too. So the costs are computed from cohorts of one student and of all students."""
    one, all_, number = [], [], count()
    train_cohort(_students(bench, f"{source}-warm", 1, data, setup))
    clips = setup.clips * setup.times * setup.epochs
    for _ in range(setup.runs):
        one.append(_cost(_students(bench, f"{source}-{next(number)}", 1, data, setup)))
        all_.append(_cost(_students(bench, f"{source}-{next(number)}", setup.students, data, setup)))
    n = setup.students
    step = [(b - a) / (n - 1) for a, b in zip(one, all_, strict=True)]
    ratio = [b / (n * a) for a, b in zip(one, all_, strict=True)]
    return [
        measured(
            f"from {source}: one student, start and input and step", [1e3 * s / clips for s in one], "core ms a clip"
        ),
        measured(f"from {source}: each further one", [1e3 * s / clips for s in step], "core ms a clip"),
        measured(f"from {source}: a cohort of {n} ÷ {n} single runs", ratio, ""),
        *_bound(bench, source, data, ratio, setup),
    ]


def _bound(bench: Bench, source: str, data: dict, ratio: list[float], setup: Setup) -> list[Figure]:
    n = setup.students
    student = _students(bench, "parts", 1, data, setup)["seed=0"]
    input_time, step = input_ms(student, setup.runs), step_ms(student, setup.runs)
    bound = (input_time + n * step) / (n * (input_time + step))
    return [
        Figure(f"from {source}: bound, of {input_time:.1f} ms of input and {step:.1f} ms of step", bound, ""),
        at_most(f"from {source}: cohort ÷ bound", [r / bound for r in ratio], "", WITHIN),
    ]


def _students(bench: Bench, name: str, students: int, data: dict, setup: Setup) -> dict[str, TrainConfig]:
    shared = {"train": bench.data(), "order_seed": 0, "cache": bench.cache(), **data}
    return bench.cohort(name, students, setup.model, setup.size, data=shared, schedule={"epochs": setup.epochs})


def _cost(students: dict[str, TrainConfig]) -> float:
    began = core_seconds()
    train_cohort(students)
    return core_seconds() - began
