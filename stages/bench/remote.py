"""Training and stage one on an object store: what a step waits for, what is fetched with little room, what a clip costs.

The store is a real S3 server on loopback, behind a proxy that answers each request 20 ms later. A step is a pause, as long
as a GPU's would be that takes clips at two thirds of the rate of this machine's decoding.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.view import ViewPolicy
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.eviction import lru_bytes, optimum_bytes
from stages.bench.figures import Figure, at_least, at_most, measured, median_of, show
from stages.bench.s3_server import Proxy, behind_proxy, store_nearby
from stages.bench.stage1_runs import Setup as StageOne
from stages.bench.stage1_runs import stage_one_config
from stages.bench.videos import SMALL, Kind, link_videos, make_videos
from stages.models.config import ModelConfig
from stages.prepare.prepare import prepare
from stages.remote.url_path import UrlPath
from stages.runtime.distributed import Ranks
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.local_blocks import LocalBlocks, block_count, block_span
from stages.stream.batch import Batch
from stages.stream.block_plan import plan_blocks
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.local_folder import read_through_folder
from stages.stream.order import Order, batches_of_run, node_epochs
from stages.teacher.cache_teacher import cache_teacher

LATENCY = 0.02  # seconds
BUCKET = "s3://bench"
ALONE = Ranks(0, 1, torch.device("cpu"))
BATCH, FRAMES, SIZE = 8, 8, 112
TEACHER = ModelConfig(backbone="resnet18", num_frames=FRAMES)
PACE = 1.5  # a step takes so many times the time in which the decoding processes make a batch


@dataclass(frozen=True)
class Setup:
    """`clips` videos of `seconds`, each under `times` names, are trained on; `many` tiny ones, each in `blocks` of 64, are
    fetched with little room. `streams`, `window`: of the order of the latter. `cached`: clips of stage one."""

    kind: Kind = SMALL[0]
    clips: int = 8
    times: int = 40
    seconds: float = 10.0
    epochs: int = 3
    many: int = 4096
    streams: int = 4
    window: int = 3
    cached: int = 96
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(clips=2, times=64, epochs=2, many=1024, streams=2, window=1, cached=32, runs=1)
TINY = Kind(64, 48, 6)


def run_remote(quick: bool, output: Path | None, folder: Path) -> list[Figure]:
    """Measure training from a store. The videos are made in `folder` and kept."""
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as temporary, store_nearby(Path(temporary)) as port, behind_proxy(port) as proxy:
        path = Path(temporary)
        figures = [*_waiting(path, folder, proxy, setup), *_little_room(path, folder, proxy, setup)]
        figures += _stage_one(path, folder, proxy, setup)
    show("remote", figures, output)
    return figures


def _data(path: Path, videos: Path, clips: int, name: str, shard: int = 1024) -> tuple[Dataset, Dataset]:
    """A data set on this machine, and the same one in the store."""
    local = prepare(link_videos(videos, path / f"{name}-videos", clips), path / name, clips_per_shard=shard, workers=0)
    for file in local.path.rglob("*"):
        if file.is_file():
            (UrlPath(BUCKET) / name / file.relative_to(local.path).as_posix()).upload(file)
    return local, open_dataset(f"{BUCKET}/{name}")


def _clips(data: Dataset) -> ClipDataset:
    return ClipDataset(data, size=SIZE, num_classes=len(data.classes), policy=ViewPolicy(num_frames=FRAMES))


def _order(data: Dataset, window: int, streams: int) -> Order:
    return Order(data.usable_rows(), [e.name for e in data.shards], 0, BATCH, 1, window, streams, None)


def _waiting(path: Path, folder: Path, proxy: Proxy, setup: Setup) -> list[Figure]:
    """Train by pauses, from local files and from the store; then read clips of both."""
    videos = make_videos(folder, setup.kind, setup.clips, setup.seconds)
    local, remote = _data(path, videos, setup.clips * setup.times, "train")
    proxy.latency = LATENCY
    loader = LoaderConfig.model_validate({"local": {"path": path / "blocks"}})
    order = _order(local, window=1, streams=4)
    steps = order.steps_per_epoch()
    waits = _waits(batches_of_run(_clips(local), order, 1, (0, 0), loader, ALONE), 0.0)
    pause = PACE * float(np.mean(waits[1:]))
    near = _waits(batches_of_run(_clips(local), order, 2, (0, 0), loader, ALONE), pause)
    far = _waits(batches_of_run(_clips(remote), order, setup.epochs, (0, 0), loader, ALONE), pause)
    named = {
        "waiting, first epoch": (far[1:steps], 10),
        "waiting, later epochs": (far[steps:], 2),
        "waiting, later epochs, local files": (near[steps:], None),
    }
    figures = [_share(name, values, pause, goal) for name, (values, goal) in named.items()]
    figures.append(Figure("the first batch, store − local", far[0] - near[0], "s"))
    return [*figures, _joining(local, remote, path / "blocks", setup)]


def _waits(batches: Iterable[Batch], pause: float) -> list[float]:
    """The seconds that each step waits for its batch. The first one waits for the start of the processes."""
    waits, began = [], time.perf_counter()
    for _ in batches:
        waits.append(time.perf_counter() - began)
        time.sleep(pause)
        began = time.perf_counter()
    return waits


def _share(name: str, waits: list[float], pause: float, goal: float | None) -> Figure:
    share = 100 * sum(waits) / (sum(waits) + len(waits) * pause)
    return Figure(name, share, "% of time") if goal is None else at_most(name, [share], "% of time", goal)


def _joining(local: Dataset, remote: Dataset, folder: Path, setup: Setup) -> Figure:
    """The CPU time to read, check and join a clip from a block that is here, against a local tar. Both alternate."""
    (blocks,) = (file for file in folder.iterdir() if file.is_dir())
    ratios = []
    for _ in range(setup.runs):
        far, near = (median_of(cpu_seconds(lambda data=data: _join(data), 3))[0]
                     for data in (remote.with_local(LocalBlocks(blocks, os.getpid())), local))  # fmt: skip
        ratios.append(far / near)
    value, spread = median_of(ratios)
    return Figure("join a clip from a block that is here ÷ from a local tar", value, "", spread, "0.95 to 1.05",
                  0.95 <= value <= 1.05)  # fmt: skip


def _join(data: Dataset) -> None:
    clips, shard = _clips(data), data.shards[0].name
    rows = np.random.default_rng(0).permutation(data.shards[0].clips).tolist()
    clips.views_and_targets([(0, r, 0) for r in rows], [data.rows(shard)[r] for r in rows])
    for row in rows:
        data.read(shard, row)


def _stage_one(path: Path, folder: Path, proxy: Proxy, setup: Setup) -> list[Figure]:
    """Stage one from the store into the store against folders of this machine, in wall time. Both take turns.

    The clip·views beyond a third of the clips are timed, in as many shards: what a run and a shard take in a store whatever
    their size is told apart.
    """
    proxy.latency = 0.0
    videos = make_videos(folder, setup.kind, setup.clips, setup.seconds)
    sizes = {clips: _data(path, videos, clips, f"cached-{clips}", shard=clips // 3)
             for clips in (setup.cached // 3, setup.cached)}  # fmt: skip
    proxy.latency = LATENCY
    ratios, more = [], []
    for run in range(setup.runs):
        near, far = [], []
        for clips, (local, remote) in sizes.items():
            config = stage_one_config(path, local, TEACHER, SIZE, StageOne(), f"near-{clips}-{run}.zarr")
            near.append(cache_teacher(config)["seconds"])
            there = {"data": remote.path, "output": UrlPath(f"{BUCKET}/far-{clips}-{run}.zarr")}
            far.append(cache_teacher(config.model_copy(update=there))["seconds"])
        ratios.append((near[1] - near[0]) / (far[1] - far[0]))
        more.append(far[0] - near[0] - ((far[1] - far[0]) - (near[1] - near[0])) / 2)
    return [
        at_least("stage one from and into the store ÷ local, a further clip·view", ratios, "", 0.95),
        measured("a run of three shards beside its clip·views, the store − local", more, "s"),
    ]


def _little_room(path: Path, folder: Path, proxy: Proxy, setup: Setup) -> list[Figure]:
    """Five epochs without decoding, with room for half of the blocks and for those in use at once."""
    proxy.latency = 0.0
    remote = _data(path, make_videos(folder, TINY, 8, 0.5), setup.many, "many")[1]
    proxy.latency = LATENCY
    sizes = [stop - start for entry in remote.shards for start, stop in
             (block_span(remote, entry.name, block) for block in range(block_count(remote, entry.name)))]  # fmt: skip
    order = _order(remote, setup.window, setup.streams)
    epochs = [blocks for _, blocks in node_epochs(remote, order, 5, (0, 0), ALONE)]
    batches = [set(row) for blocks in epochs for row in blocks.tolist()]
    in_use = sum(sorted(sizes)[-setup.streams * (setup.window + 1) :])
    figures = []
    for name, budget in (("half", sum(sizes) // 2), ("the working set", in_use)):
        proxy.log.clear()
        _read_epochs(remote, order, path / name, budget)
        missed = sum(len(step.fetch) for step in plan_blocks(iter(epochs), sizes.__getitem__, budget, {}))
        best = optimum_bytes(batches, sizes, budget)
        figures += [
            at_most(f"bytes fetched, room for {name} ÷ the optimum", [_fetched(proxy) / best], "", 1.02),
            Figure(
                f"bytes fetched by LRU, room for {name} ÷ the optimum", lru_bytes(batches, sizes, budget) / best, ""
            ),
            at_most(f"requests ÷ blocks missed, room for {name}", [len(proxy.log) / missed], "", 1.1),
        ]
    return figures


def _read_epochs(data: Dataset, order: Order, folder: Path, budget: int) -> None:
    def make(clips: ClipDataset) -> Iterator[None]:
        for epoch in range(5):
            for batch in order.batches(epoch, 0, 0, 1):
                places = {(data.shards[s].name, r) for s, r, _ in batch}
                clips.data.local.wait_for(clips.data, places, lambda: None)
                yield None

    local = LoaderConfig.model_validate({"local": {"path": folder}}).local
    for _ in read_through_folder(_clips(data), make, node_epochs(data, order, 5, (0, 0), ALONE), local, budget, ALONE):
        pass


def _fetched(proxy: Proxy) -> int:
    """Bytes of tars that were asked for."""
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", asked) for _, path, asked in proxy.log if path.endswith(".tar")]
    return sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)
