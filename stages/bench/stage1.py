"""Stage one against decoding alone and the teacher alone, and its memory and time for more clips.

Each round measures three rates, one after another:
- stage one, from shards to a committed cache;
- get_batch of decord for the same frames, each frame once, in as many processes as stage one has workers;
- the teacher's forward pass on a batch in memory, in as many loops at once as stage one has forwards.
On a CPU decoding and forwards share the cores, so a clip·view takes the sum of both times: bound = 1 / (1/decode +
1/forward), with rates of the whole machine in core seconds (see `core_seconds`). These count idle cores, and not the work
of other programs. On a GPU both run at the same time: bound = the lower rate, in wall time. Stage one also renders,
encodes, computes checksums and starts workers. The bound doesn't.
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
from stages.bench.device_peak import product_gmacs
from stages.bench.figures import Figure, at_least, measured, profiled, show
from stages.bench.stage1_answers import Answers, run_answers
from stages.bench.stage1_growth import memory_over_more_clips, over_more_clips
from stages.bench.stage1_runs import Setup, cache_filler, make_dataset, measure_rate, stage_one_config
from stages.bench.videos import SMALL, make_videos
from stages.models.video_model import model_stats
from stages.runtime.distributed import Ranks, join_ranks
from stages.shards.dataset import Dataset
from stages.stream.loading import decoding_workers
from stages.teacher.config import CacheConfig
from stages.teacher.forward import FORWARDS_ON_CPU
from stages.teacher.load_teacher import load_teacher
from stages.teacher.teacher import Teacher, uncompiled
from stages.video.decord_decode import decord

FULL = Setup()
QUICK = Setup(clips=2, batch_size=1, few=4, times=(1, 4), many=16, sizes=(1, 4))
FULL_ANSWERS, QUICK_ANSWERS = Answers(), Answers(clips=16, runs=1, written=64)

ON_GPU = {"clips": 512, "batch_size": 16}  # a GPU is faster, so it gets more clips
DISTINCT = 8  # different videos; larger data sets have them under several names


def run_stage1(quick: bool, output: Path | None, trace: Path | None, folder: Path, ready: bool = False) -> list[Figure]:
    """Measure with 340x256 clips of GOP 12. The clips are made in `folder` and kept. Raises ReskdError without decord.

    `ready`: measure all but the forward, with a stand-in for the teacher that has its answers ready (`run_answers`).
    """
    if decord is None:
        raise ReskdError(
            "bench stage1 needs decord, which is not installed: use a platform for which decord has a wheel"
        )
    setup = QUICK if quick else FULL
    videos = make_videos(folder, SMALL[0], min(setup.few, DISTINCT), setup.seconds)
    if ready:
        with tempfile.TemporaryDirectory() as temporary:
            figures = run_answers(Path(temporary), videos, QUICK_ANSWERS if quick else FULL_ANSWERS, trace)
        show("stage1, answers ready", figures, output)
        return figures
    with tempfile.TemporaryDirectory() as temporary, join_ranks() as ranks:
        if ranks.device.type == "cuda":
            setup = replace(setup, **ON_GPU)
        figures = _against_its_bound(Path(temporary), videos, setup, ranks, trace)
        figures += over_more_clips(Path(temporary), videos, setup, ranks)
        figures += memory_over_more_clips(Path(temporary), videos, setup)
    show("stage1", figures, output)
    return figures


def _against_its_bound(folder: Path, videos: Path, setup: Setup, ranks: Ranks, trace: Path | None) -> list[Figure]:
    data = make_dataset(folder / "bound", videos, setup.clips)
    config = stage_one_config(folder, data, setup.model, setup.size, setup, "bound.zarr")
    stage_one, count = cache_filler(config, data, ranks), setup.clips * setup.views
    teacher, _ = load_teacher(config, data, ranks.device)
    workers, gpu = decoding_workers(config.loader), ranks.device.type == "cuda"
    _forward_rate(teacher, setup, gpu)  # the first call is slower and doesn't count
    rounds = []
    for _ in range(setup.runs):
        rate, decode, forward = (
            measure_rate(stage_one, count, gpu),
            _decode_rate(config, data, workers, gpu),
            _forward_rate(teacher, setup, gpu),
        )
        bound = min(decode, forward) if gpu else 1 / (1 / decode + 1 / forward)
        rounds.append((rate, decode, forward, bound, rate / bound))
    time, gmacs = teacher_time_of(config.output, {}), model_stats(uncompiled(teacher.model), teacher.size).gmacs
    peak = product_gmacs(ranks.device, teacher.dtype)
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
        measured("the teacher alone: multiply-adds ÷ a matrix product's", [gmacs * r / peak for r in forward], ""),
        measured("stage one: multiply-adds ÷ a matrix product's", [gmacs * r / peak for r in rate], ""),
        at_least("stage one ÷ its bound", ratio, "", 0.9),
        Figure("forwards, of stage one's wall time", 100 * time.forward_seconds / time.seconds, "%"),
    ]


def _decode_rate(config: CacheConfig, data: Dataset, workers: int, gpu: bool) -> float:
    """The clip·views per second of decord alone in `workers` processes. Each process decodes one clip at a time."""
    tasks = []
    for entry in data.shards:
        for r, row in enumerate(data.rows(entry.name)):
            frames = [sample_view(config.policy, shard=entry.name, key=row.key, index=v, num_frames=row.frames,
                                  aspect=row.aspect).frames for v in range(config.views)]  # fmt: skip
            tasks.append((data.read(entry.name, r), np.unique(np.concatenate(frames))))
    tasks *= 5  # so that the start of processes is a small part of the time

    def work() -> None:
        with ProcessPoolExecutor(max(1, workers), multiprocessing.get_context("fork")) as pool:
            list(pool.map(_decode, tasks))

    return measure_rate(work, len(tasks) * config.views, gpu)


def _decode(task: tuple[bytes, np.ndarray]) -> int:
    return len(plain_decord(*task))


def _forward_rate(teacher: Teacher, setup: Setup, gpu: bool) -> float:
    """The clip·views per second of the teacher on a batch in memory, in as many loops as stage one has forwards."""
    clips = torch.zeros(setup.batch_size, setup.model.num_frames, 3, setup.size, setup.size, dtype=torch.uint8)
    clips = clips.random_(generator=torch.Generator().manual_seed(0)).to(teacher.device)
    loops, batches = (1, 50) if gpu else (FORWARDS_ON_CPU, max(1, setup.clips // setup.batch_size // FORWARDS_ON_CPU))

    def loop(_: int) -> None:
        for _ in range(batches):
            outputs = teacher.forward(clips, ("logits",))
        outputs["logits"].cpu()  # waits for all batches

    with ThreadPoolExecutor(loops) as pool:
        return measure_rate(lambda: list(pool.map(loop, range(loops))), loops * batches * setup.batch_size, gpu)
