"""`bench bad-videos`: odd kinds of video, mutants of videos, and bombs. Each is served right or refused, at little cost."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stages.bench.bad_videos.bombs import bombs
from stages.bench.bad_videos.checks import check_bomb, check_file, check_mutant
from stages.bench.bad_videos.frame_check import Outcome, memory_growth, opens
from stages.bench.bad_videos.odd_videos import KINDS, made_kinds
from stages.bench.figures import Figure, at_least, at_most, measured, show
from stages.prepare.workers import VideoLimits, Workers
from stages.runtime.terminal import console

NAMES = {
    "pyav-seek": "PyAV, which seeks",
    "pyav": "PyAV, from the start",
    "decord": "decord",
    "refused": "nobody: refused",
}
MEGABYTE = 1e6


@dataclass(frozen=True)
class Setup:
    """`each`: every so many-th kind, in all its containers, and every so many-th bomb. `memory`: the most that a worker may
    take for one video, in bytes."""

    mutants: int = 3000
    decodes: int = 10_000
    each: int = 1
    workers: int = 2
    memory: int = 10**9


FULL = Setup()
QUICK = Setup(mutants=300, decodes=1000, each=4)


def run_bad_videos(quick: bool, output: Path | None, videos: Path | None, seed: int = 0) -> list[Figure]:
    """Check all made kinds, mutants of them or of the files in `videos`, and bombs; and that decoding loses no memory.

    `seed`: of the first mutant; the others follow.
    """
    setup, figures = QUICK if quick else FULL, []
    limits = VideoLimits(seconds=30, seconds_per_mb=0, memory=setup.memory)
    with tempfile.TemporaryDirectory() as folder, Workers(setup.workers, limits) as workers:
        kinds = ((f"{kind}.{container}", data) for kind, container, data in made_kinds(setup.each))
        made = _written(Path(folder) / "kinds", kinds)
        found = _checked(workers, check_file, made, [0] * len(made))
        figures += [measured("kinds", [len(list(KINDS)[:: setup.each])], ""), *_figures("kinds in containers", found)]

        sources = (
            made if videos is None else sorted(path for path in videos.rglob("*") if path.is_file() and opens(path))
        )
        seeds = range(seed, seed + setup.mutants)
        chosen = [sources[s % len(sources)] for s in seeds]
        figures += _figures("mutants", _checked(workers, check_mutant, chosen, seeds))

        small = _written(Path(folder) / "bombs", bombs())[:: setup.each]
        found = _checked(workers, check_bomb, small, [0] * len(small))
        figures += _figures("bombs", found, most_seconds=2, most_megabytes=200)

        grown = next(workers.map([partial(memory_growth, made, setup.decodes)]))
        figures.append(at_most(f"memory that {setup.decodes:,} decodes leave", [grown / MEGABYTE], "MB", 20))
    show("bad videos", figures, output)
    return figures


def _written(folder: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    folder.mkdir()
    paths = []
    for name, data in files:
        paths.append(folder / name.replace("/", "-"))
        paths[-1].write_bytes(data)
    return paths


def _checked(
    workers: Workers, check: Callable[[Path, int], Outcome], paths: Sequence[Path], seeds: Sequence[int]
) -> list[Outcome]:
    """The outcomes. What is wrong is printed with its file and seed, by which it can be repeated."""
    tasks = [partial(check, path, seed) for path, seed in zip(paths, seeds, strict=True)]
    outcomes = []
    for task, outcome in zip(tasks, workers.map(tasks, _crashed), strict=True):
        outcomes.append(outcome)
        if outcome.wrong:
            path, seed = task.args
            console.print(f"{check.__name__} {path.name}, seed {seed}: {outcome.wrong}", markup=False, highlight=False)
    return outcomes


def _crashed(reason: str) -> Outcome:
    return Outcome("crashed", reason, 0.0, 0)


def _figures(
    name: str, outcomes: list[Outcome], most_seconds: float | None = None, most_megabytes: float | None = None
) -> list[Figure]:
    served = Counter(outcome.served for outcome in outcomes)
    seconds = float(np.max([outcome.seconds for outcome in outcomes]))
    megabytes = float(np.max([outcome.peak for outcome in outcomes])) / MEGABYTE
    longest, largest = f"{name}: the longest, CPU", f"{name}: the largest"
    return [
        at_least(name, [len(outcomes)], "files", 1),
        *(measured(f"{name}: served by {NAMES[by]}", [served[by]], "files") for by in NAMES),
        at_most(f"{name}: crashes and hangs", [served["crashed"]], "files", 0),
        at_most(f"{name}: other frames", [sum(bool(o.wrong) and o.served != "crashed" for o in outcomes)], "files", 0),
        measured(longest, [seconds], "s") if most_seconds is None else at_most(longest, [seconds], "s", most_seconds),
        measured(largest, [megabytes], "MB")
        if most_megabytes is None
        else at_most(largest, [megabytes], "MB", most_megabytes),
    ]
