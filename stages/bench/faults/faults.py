"""`bench faults`: are the stages right, or an error that says what to do, whatever happens to them?

Every stage runs undisturbed on small real data. Then it is killed, stopped, starved, and its files are damaged. What a rerun
makes has to be, bit for bit, what the undisturbed run made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.bench.faults.disk import bytes_of, can_mount, full_disk, read_only, vanishing
from stages.bench.faults.flipped_bits import flipped, kinds, stop_a_run
from stages.bench.faults.kills import (
    clock_set_back,
    commit_kills,
    few_files,
    find_faketime,
    killed_workers,
    random_kills,
    signals,
    two_writers,
)
from stages.bench.faults.stages import Sizes, Stage, make_stages, output_of
from stages.bench.figures import Figure, show
from stages.runtime.fresh_process import fresh_context
from stages.runtime.terminal import console

# The commands are forks of a process that has the imports and no threads.
WITH_WORKERS = ("prepare", "cache-teacher", "pack", "train-student")  # decoding processes that may be killed

SIZES = Sizes()


@dataclass(frozen=True)
class Setup:
    """How often each fault is tried, on each stage or each kind of file. `stride`: each so many-th rename is a kill."""

    sizes: Sizes = SIZES
    stages: tuple[str, ...] = ("prepare", "cache-teacher", "pack", "train-student", "evaluate", "sweep")
    kills: int = 17
    stride: int = 1
    signals: int = 1
    workers: int = 2
    writers: int = 1
    room: int = 3
    vanishing: int = 2
    flips: int = 4
    kinds: tuple[str, ...] | None = None  # of files; None: all
    once: tuple[str, ...] = ("prepare", "cache-teacher", "pack", "train-student")  # few files, another clock, read-only
    clocks: tuple[str, ...] = ("prepare", "cache-teacher", "pack", "train-student")
    left_out: tuple[str, ...] = ()  # stages that nothing else needs
    jobs: int | None = None  # faults at once; None: as many as cores


FULL = Setup()
QUICK = Setup(stages=WITH_WORKERS, kills=3, stride=7, signals=1, workers=1, writers=1, room=1, vanishing=1, flips=1,
              clocks=("train-student",))  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """`faults`: for each try what was wrong; None: nothing. `skipped`: why nothing was tried."""

    name: str
    faults: tuple[str | None, ...]
    skipped: str = ""


def run_faults(quick: bool, output: Path | None) -> list[Figure]:
    """Try every fault. Print what was wrong, and the figures, and write these into `output`."""
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands: one thread adds in one order
        context = fresh_context("stages.bench.faults.process")
        with ProcessPoolExecutor(setup.jobs or os.cpu_count() or 1, context) as pool:
            stages = pool.submit(_make, root, setup).result()
            tries = _tries(root, stages, setup, pool.submit(can_mount, root / "mount").result())
            futures = {pool.submit(_try, root / f"try-{n}", name, fault): name for n, (name, fault) in enumerate(tries)}
            outcomes = []
            for future in as_completed(futures):
                outcomes.append(future.result())
                _say(f"{len(outcomes)} of {len(tries)}", outcomes[-1])
    figures = [
        _figure(name, [o for o in outcomes if o.name == name]) for name in dict.fromkeys(name for name, _ in tries)
    ]
    show("faults", figures, output)
    return figures


def _make(root: Path, setup: Setup) -> dict[str, Stage]:
    stages = make_stages(root, setup.sizes, setup.left_out)
    if "train-student" in stages:
        stop_a_run(root, stages["train-student"])
    return stages


Fault = Callable[[Path], Iterator[str | None]]  # tries a fault in a folder


def _tries(root: Path, stages: Mapping[str, Stage], setup: Setup, mounts: bool) -> list[tuple[str, Fault | str]]:
    """The name of each fault with what tries it, or with why it is skipped."""
    tries: list[tuple[str, Fault | str]] = []
    chosen = [stages[name] for name in setup.stages]
    for stage in chosen:
        tries.append(
            (f"SIGKILL at a random instant, {stage.name}", partial(random_kills, stage=stage, kills=setup.kills))
        )
    for stage in chosen:
        tries.append((f"SIGKILL at a rename, {stage.name}", partial(commit_kills, stage=stage, stride=setup.stride)))
    for stage in chosen:
        size = bytes_of(output_of(root, stage.name))
        full = partial(full_disk, stage=stage, size=size, times=setup.room)
        tries.append(("a full disk, then room", full if mounts else "no mounts in a namespace (unshare)"))
    once = [stages[name] for name in setup.once]
    for stage in once:
        tries.append(
            ("a read-only output", partial(read_only, stage=stage) if mounts else "no mounts in a namespace (unshare)")
        )
        tries.append(("an output that vanishes", partial(vanishing, stage=stage, times=setup.vanishing)))
        tries.append(("two writers", partial(two_writers, stage=stage, times=setup.writers)))
        tries.append(("256 open files", partial(few_files, stage=stage)))
        tries.append(("SIGTERM, SIGINT", partial(signals, stage=stage, times=setup.signals)))
    for name in kinds(root, stages):
        if setup.kinds is None or name in setup.kinds:
            flip = partial(flipped, root=root, stages=stages, name=name, times=setup.flips)
            tries.append((f"a flipped bit, {name}", flip))
    for stage in (stages[name] for name in WITH_WORKERS if name in setup.once):
        tries.append(("a decoding process is killed", partial(killed_workers, stage=stage, kills=setup.workers)))
    faketime = find_faketime()
    for name in setup.clocks:
        back = partial(clock_set_back, stage=stages[name], faketime=faketime)
        tries.append(("the clock is set back", back if faketime else "libfaketime isn't installed"))
    return tries


def _try(folder: Path, name: str, fault: Fault | str) -> Outcome:
    if isinstance(fault, str):
        return Outcome(name, (), fault)
    try:
        return Outcome(name, tuple(fault(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say(number: str, outcome: Outcome) -> None:
    """Print how a fault has ended, with all that was wrong."""
    right = (
        f"skipped, {outcome.skipped}"
        if outcome.skipped
        else f"{outcome.faults.count(None)} of {len(outcome.faults)} right"
    )
    for line in (f"{number}: {outcome.name}: {right}", *(f"  wrong: {fault}" for fault in outcome.faults if fault)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _figure(name: str, outcomes: Sequence[Outcome]) -> Figure:
    """How many tries of a fault were right; the goal is all of them."""
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    if not faults:
        return Figure(f"{name}: skipped", 0, "tried")
    right = faults.count(None)
    return Figure(name, right, f"of {len(faults)} right", goal=f"= {len(faults)}", ok=right == len(faults))
