"""Stage one against what it is made of: decoding alone and the teacher alone; and its memory and pace over more clips.

A round measures, one after the other: stage one itself (shards to committed cache); decord's bare get_batch of the same
frames, each of a clip once, in as many processes as stage one has workers; the teacher's forward over a resident batch, as
many loops at once as stage one has forwards. On a CPU decoding and forwards share the cores, so that a clip·view takes at
least the sum of what both take: bound = 1 / (1/decode + 1/forward), rates of the whole machine. Each is counted in seconds
of cores, computed or idle (`core_seconds`): a core without work counts against whoever left it so, other programs' work
against none. On a GPU both run beside each other: bound = the slower rate, by the wall clock. The bound has no rendering,
no encoding, no checksums and no start of workers; stage one has.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cache.errors import ReskdError
from cache.teacher_time import teacher_time_of
from cache.view import sample_view
from stages.bench.decode import plain_decord
from stages.bench.figures import Figure, at_least, measured, profiled, show
from stages.bench.stage1_growth import memory_over_more_clips, over_more_clips
from stages.bench.stage1_runs import Setup, config_for, filling, prepared, rate_of
from stages.bench.videos import SMALL, make_videos
from stages.runtime.distributed import Ranks, join_ranks
from stages.shards.dataset import Dataset
from stages.stream.loading import decoding_workers
from stages.teacher.config import CacheConfig
from stages.teacher.forward import FORWARDS_ON_CPU
from stages.teacher.load_teacher import load_teacher
from stages.teacher.teacher import Teacher
from stages.video.decode import decord

FULL = Setup()
QUICK = Setup(clips=2, batch_size=1, few=4, times=(1, 4), many=16, sizes=(1, 4))

ON_GPU = {"clips": 512, "batch_size": 16}  # a GPU takes as long over these
DISTINCT = 8  # videos; longer data sets have them under several names


def run_stage1(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure on 340x256 clips of GOP 12, which are made in `folder` and kept. Raises ReskdError without decord."""
    if decord is None:
        raise ReskdError("bench stage1 measures against decord, which is not installed here: use a machine that has it")
    setup = QUICK if quick else FULL
    videos = make_videos(folder, SMALL[0], min(setup.few, DISTINCT), setup.seconds)
    with tempfile.TemporaryDirectory() as temporary, join_ranks() as ranks:
        if ranks.device.type == "cuda":
            setup = replace(setup, **ON_GPU)
        figures = _against_its_bound(Path(temporary), videos, setup, ranks, trace)
        figures += over_more_clips(Path(temporary), videos, setup, ranks)
        figures += memory_over_more_clips(Path(temporary), videos, setup)
    show("stage1", figures, output)
    return figures


def _against_its_bound(folder: Path, videos: Path, setup: Setup, ranks: Ranks, trace: Path | None) -> list[Figure]:
    data = prepared(folder / "bound", videos, setup.clips)
    config = config_for(folder, data, setup.model, setup.size, setup, "bound.zarr")
    stage_one, count = filling(config, data, ranks), setup.clips * setup.views
    teacher, _ = load_teacher(config, data, ranks.device)
    workers, gpu = decoding_workers(config.loader), ranks.device.type == "cuda"
    _forward_rate(teacher, setup, gpu)  # the first is not counted
    rounds = []
    for _ in range(setup.runs):
        rate, decode, forward = (
            rate_of(stage_one, count, gpu),
            _decode_rate(config, data, workers, gpu),
            _forward_rate(teacher, setup, gpu),
        )
        bound = min(decode, forward) if gpu else 1 / (1 / decode + 1 / forward)
        rounds.append((rate, decode, forward, bound, rate / bound))
    paid = teacher_time_of(config.output, {})
    with profiled(trace):
        if trace is not None:
            stage_one()
    rate, decode, forward, bound, ratio = zip(*rounds, strict=True)
    what = f"{setup.model.backbone} at {setup.size}, 8 frames of {SMALL[0]}"
    return [
        measured(f"stage one, {what}", rate, "clip·views/s"),
        measured(f"decoding alone, {workers} processes", decode, "clip·views/s"),
        measured("the teacher alone", forward, "clip·views/s"),
        measured("their bound", bound, "clip·views/s"),
        at_least("stage one ÷ its bound", ratio, "", 0.9),
        Figure("forwards, of stage one's wall time", 100 * paid.forward_seconds / paid.seconds, "%"),
    ]


def _decode_rate(config: CacheConfig, data: Dataset, workers: int, gpu: bool) -> float:
    """clip·views a second of bare decord, in so many processes, each a clip at a time."""
    tasks = []
    for entry in data.shards:
        for r, row in enumerate(data.rows(entry.name)):
            drawn = [sample_view(config.policy, shard=entry.name, key=row.key, index=v, num_frames=row.frames,
                                 aspect=row.aspect).frames for v in range(config.views)]  # fmt: skip
            tasks.append((data.read(entry.name, r), np.unique(np.concatenate(drawn))))
    tasks *= 5  # the start of processes is a small part of it

    def work() -> None:
        with ProcessPoolExecutor(max(1, workers), multiprocessing.get_context("fork")) as pool:
            list(pool.map(_decode, tasks))

    return rate_of(work, len(tasks) * config.views, gpu)


def _decode(task: tuple[bytes, np.ndarray]) -> int:
    return len(plain_decord(*task))


def _forward_rate(teacher: Teacher, setup: Setup, gpu: bool) -> float:
    """clip·views a second of the teacher over a batch that is there, in as many loops at once as stage one has forwards."""
    clips = torch.zeros(setup.batch_size, setup.model.num_frames, 3, setup.size, setup.size, dtype=torch.uint8)
    clips = clips.random_(generator=torch.Generator().manual_seed(0)).to(teacher.device)
    loops, batches = (1, 50) if gpu else (FORWARDS_ON_CPU, max(1, setup.clips // setup.batch_size // FORWARDS_ON_CPU))

    def loop(_: int) -> None:
        for _ in range(batches):
            found = teacher.forward(clips, ("logits",))
        found["logits"].cpu()  # waits for all of them

    with ThreadPoolExecutor(loops) as pool:
        return rate_of(lambda: list(pool.map(loop, range(loops))), loops * batches * setup.batch_size, gpu)
