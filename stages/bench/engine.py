"""Stage one by actors of Ray against the ranks of torchrun, and what the death of an actor costs.

Both sides are two processes of one thread each, over the same shards. Starts are left out: the clock runs from the moment
in which all processes have loaded the teacher until the last shard is committed. Ranks start their decoding workers after it,
actors before it: some tenths of a second in favour of the actors, so short runs flatter them. The rate is in wall time, so other
programs count; measure on an idle machine. Rounds take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from cache.create import create_cache
from cache.group import load_group, load_manifest
from stages.bench.clocks import RUNS
from stages.bench.figures import Figure, at_least, at_most, measured, show
from stages.bench.stage1_runs import Setup as StageOne
from stages.bench.stage1_runs import stage_one_config
from stages.bench.videos import SMALL, link_videos, make_videos
from stages.engine.actor import Tell, Units, Work
from stages.engine.engine import Engine
from stages.engine.run_units import Outcome, run_units
from stages.models.config import ModelConfig
from stages.prepare.prepare import prepare
from stages.runtime.distributed import join_ranks
from stages.runtime.fresh_process import start_by_default
from stages.shards.dataset import Dataset, open_dataset
from stages.teacher.cache_teacher import compute_missing
from stages.teacher.config import CacheConfig
from stages.teacher.constants import root_arrays
from stages.teacher.engine_units import on_engine
from stages.teacher.load_teacher import load_teacher

PROCESSES = 2
NET = ModelConfig(backbone="resnet18", num_frames=8)


@dataclass(frozen=True)
class Setup:
    """`clips` clips in `shards` shards, in two views at 112 px. `runs`: of each side. `kills`: actors killed half-way."""

    clips: int = 192
    shards: int = 12
    runs: int = RUNS
    kills: int = 3


FULL = Setup()
QUICK = Setup(clips=32, shards=8, runs=1, kills=1)


def run_engine(quick: bool, output: Path | None, folder: Path) -> list[Figure]:
    """Measure with 340x256 clips of GOP 12. The clips are made in `folder` and kept."""
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="b") as temporary:
        videos = link_videos(make_videos(folder, SMALL[0], 8, 10.0), Path(temporary) / "videos", setup.clips)
        data = prepare(videos, Path(temporary) / "data", clips_per_shard=setup.clips // setup.shards, workers=0)
        config = stage_one_config(Path(temporary), data, NET, 112, StageOne(), "c.zarr")
        with _one_thread():
            actors, ranks = [], []
            for _ in range(setup.runs):
                actors.append(_by_actors(config, data)[0])
                ranks.append(_by_ranks(config))
            deaths = [_by_actors(config, data, kill=True)[1] for _ in range(setup.kills)]
    count = 2 * setup.clips
    figures = [
        measured("by 2 actors of Ray", [count / s for s in actors], "clip·views/s"),
        measured("by 2 ranks of torchrun", [count / s for s in ranks], "clip·views/s"),
        at_least("actors ÷ ranks, starts left out", [b / a for a, b in zip(actors, ranks, strict=True)], "", 0.95),
        at_most("an actor killed half-way: shards begun again", [o.redone / o.deaths for o in deaths], "", 1),
    ]
    show("engine", figures, output)
    return figures


@contextmanager
def _one_thread() -> Iterator[None]:
    """As torchrun sets it for each rank, here and in the processes that are started."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _new_cache(config: CacheConfig, data: Dataset) -> None:
    shutil.rmtree(config.output, ignore_errors=True)
    with join_ranks() as ranks:
        teacher, wanted = load_teacher(config, data, ranks.device)
    create_cache(config.output, wanted, root_arrays(teacher))


def _by_actors(config: CacheConfig, data: Dataset, kill: bool = False) -> tuple[float, Outcome]:
    """The seconds of a new cache by actors, and what became of its shards. `kill`: an actor, once half is committed."""
    _new_cache(config, data)
    together = config.output.parent / "together"
    shutil.rmtree(together, ignore_errors=True)
    together.mkdir()
    if kill:
        Thread(target=_kill_half_way, args=(config.output, data), daemon=True).start()
    with on_engine(config, data, load_manifest(config.output)) as job:
        job = replace(job, work=partial(_together, job.work, together), threads=1)
        outcome = run_units(Engine(actors=PROCESSES), job)
    assert not outcome.failed
    last = max(path.stat().st_mtime for path in config.output.glob("*.tar/zarr.json"))
    return last - max(path.stat().st_mtime for path in together.iterdir()), outcome


def _together(work: Work, folder: Path, units: Units, tell: Tell) -> None:
    """An actor's work, but no unit is taken before all actors are there."""
    work(_UnitsForAll(tell, units, folder), tell)


class _UnitsForAll(Units):
    """The actor's units. Its first `take` leaves a file in `folder`, and waits for those of the other actors."""

    def __init__(self, tell: Tell, units: Units, folder: Path):
        super().__init__(tell)
        self.units, self.file = units, folder / str(os.getpid())

    def take(self, seconds: float = float("inf")) -> tuple[str, Any] | None:
        if not self.file.exists():
            self.file.touch()
        while len(list(self.file.parent.iterdir())) < PROCESSES:
            time.sleep(0.01)
        return self.units.take(seconds)


def _kill_half_way(cache: Path, data: Dataset) -> None:
    while sum(load_group(cache, entry.name) is not None for entry in data.shards) < len(data.shards) // 2:
        time.sleep(0.02)
    named = (p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Actor"))
    next(named).kill()


def _by_ranks(config: CacheConfig) -> float:
    """The seconds of a new cache by two ranks, as torchrun starts them."""
    _new_cache(config, open_dataset(config.data))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    seconds = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(rank, port, config, seconds)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return seconds.get()


def _rank(rank: int, port: int, config: CacheConfig, seconds: object) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES,
               "MASTER_PORT": port}  # fmt: skip
    os.environ.update({name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"})
    start_by_default()
    data = open_dataset(config.data)
    with join_ranks() as ranks:
        teacher, _ = load_teacher(config, data, ranks.device)
        ranks.barrier()
        began = time.perf_counter()
        compute_missing(config, data, teacher, load_manifest(config.output), ranks)
        ranks.barrier()
        if ranks.first:
            seconds.put(time.perf_counter() - began)
