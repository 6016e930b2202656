"""The growth of cost with the data: the time per clip of each stage, and a student's memory, for more and more clips."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure as Picture

from stages.bench.clocks import RUNS, core_seconds
from stages.bench.figures import Figure, at_most, measured, median_of, picture_path, profiled, show
from stages.bench.processes import in_new_process
from stages.bench.stage1_growth import FLAT
from stages.bench.students import DEMO, DISTILLED, Bench, make_bench
from stages.bench.videos import SMALL
from stages.packs.pack import pack
from stages.prepare.prepare import prepare
from stages.runtime.distributed import join_ranks
from stages.runtime.memory import peak_memory
from stages.runtime.plots import warn_if_it_fails
from stages.student.config import TrainConfig
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher

STAGES = ("prepare", "cache-teacher", "pack", "train-student")


@dataclass(frozen=True)
class Setup:
    """Data sets of `clips` videos under `times` names each; under `memory` names for the student's memory."""

    clips: int = 8
    times: tuple[int, ...] = (2, 4, 8, 16)  # with fewer clips most of the time is the start of processes
    memory: tuple[int, int] = (4, 40)
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(clips=4, times=(2, 4, 8), memory=(4, 16), runs=3)


def run_growth(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure tiny networks with 340x256 clips of GOP 12. The clips are made in `folder` and kept.

    The plot is beside `output`, or in `folder`.
    """
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as temporary, join_ranks():
        peaks = [_peak(_bench(Path(temporary) / f"memory-{times}", folder, times, setup)) for times in setup.memory]
        seconds: dict[int, list[dict[str, float]]] = {times: [] for times in setup.times}
        _stages(_bench(Path(temporary) / "warm", folder, setup.times[0], setup))
        for run in range(setup.runs):
            for times, stage_seconds in seconds.items():
                stage_seconds.append(_stages(_bench(Path(temporary) / f"{times}-{run}", folder, times, setup)))
        with profiled(trace):
            if trace is not None:
                _stages(_bench(Path(temporary) / "traced", folder, setup.times[0], setup))
    figures = _figures(seconds, peaks, setup)
    show("growth", figures, output)
    picture = picture_path(output, folder / "growth.png")
    with warn_if_it_fails(f"{picture}"):
        draw(picture, seconds, setup)
    return figures


def _bench(temporary: Path, folder: Path, times: int, setup: Setup) -> Bench:
    return make_bench(temporary, folder, SMALL[0], setup.clips, times, setup.seconds)


def _stages(bench: Bench) -> dict[str, float]:
    """The core seconds of each stage on a new data set, which is removed afterwards."""
    stage_seconds, output = {}, bench.folder / "pack"
    works: dict[str, Callable[[], object]] = {
        "prepare": lambda: prepare(bench.videos, bench.folder / "data"),
        "cache-teacher": lambda: cache_teacher(bench.cache_config()),
        "pack": lambda: pack(bench.pack_config("pack", size=32, cache=bench.cache())),
        "train-student": lambda: train_student(_student(bench, output)),
    }
    for name in STAGES:
        began = core_seconds()
        works[name]()
        stage_seconds[name] = core_seconds() - began
    shutil.rmtree(bench.folder)
    return stage_seconds


def _student(bench: Bench, packed: Path) -> TrainConfig:
    data = {"train": bench.data(), "cache": bench.cache(), "pack": packed}
    return bench.student("student", DEMO, 32, data=data, losses=DISTILLED, log_every=1000)


def _peak(bench: Bench) -> float:
    """The peak memory in MB of a student's process tree. The student trains in a new process."""
    config = _student(bench, bench.packed("crops", 32))
    return in_new_process(partial(_train, config))


def _train(config: TrainConfig) -> float:
    with peak_memory(every=0.25) as peak:
        train_student(config)
        return peak()


def _figures(seconds: Mapping[int, Sequence[dict[str, float]]], peaks: Sequence[float], setup: Setup) -> list[Figure]:
    figures = []
    for name in STAGES:
        ms = {times: [1e3 * run[name] / (setup.clips * times) for run in runs] for times, runs in seconds.items()}
        figures += [
            measured(f"{name}: {setup.clips * times} clips", runs, "core ms a clip") for times, runs in ms.items()
        ]
        first, last = setup.times[0], setup.times[-1]
        growth = [b / a for a, b in zip(ms[first], ms[last], strict=True)]
        figures.append(at_most(f"{name}: {last // first} times the clips ÷ once, a clip", growth, "", FLAT))
    ratio = setup.memory[1] // setup.memory[0]
    clips = [setup.clips * times for times in setup.memory]
    return [
        *figures,
        *(Figure(f"a student's peak memory, {n} clips", mb, "MB") for n, mb in zip(clips, peaks, strict=True)),
        at_most(f"a student's peak memory, {ratio} times the clips ÷ once", [peaks[1] / peaks[0]], "", FLAT),
    ]


def draw(path: Path, seconds: Mapping[int, Sequence[dict[str, float]]], setup: Setup) -> None:
    """Plot the core milliseconds per clip over the number of clips, a line for each stage. A flat line is the goal."""
    picture = Picture(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    for name in STAGES:
        clips = [setup.clips * times for times in seconds]
        ms = [
            median_of([1e3 * run[name] / n for run in runs])[0] for n, runs in zip(clips, seconds.values(), strict=True)
        ]
        axes.plot(clips, ms, marker="o", label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="clips", ylabel="core milliseconds a clip", xticks=clips, xticklabels=clips
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
