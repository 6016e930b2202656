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
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.errors import ReskdError
from cache.paid import paid_for
from cache.view import ViewPolicy, sample_view
from cache.writer import create_cache
from stages.bench import Figure, at_least, at_most, measured, profiled, show
from stages.bench.clocks import RUNS, core_seconds
from stages.bench.decode import plain_decord
from stages.bench.videos import SMALL, linked, make_videos
from stages.cache_teacher import fill
from stages.config import CacheConfig, LoaderConfig, ModelConfig, TargetsConfig, TeacherConfig
from stages.data.decode import decord
from stages.data.shards import Dataset, open_dataset
from stages.distill.asking import AT_ONCE
from stages.distill.teacher import Teacher, load_teacher, root_arrays
from stages.models import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.prepare import prepare
from stages.training.distributed import Ranks, cores, ranks
from stages.training.loading import decoding_workers
from stages.training.memory import peak_memory

FLAT = 1.10  # what grows by more over more clips isn't flat
RESNET50 = ModelConfig(backbone="resnet50", num_frames=8)
TINY = ModelConfig(backbone="resnet18", args={"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}, num_frames=8)


@dataclass(frozen=True)
class Setup:
    """`clips` go through the whole teacher in each of `runs`; a tiny one takes `few` clips, times each of `times`, and
    `many` clips, enough to fill every queue, times each of `sizes` for the memory."""

    model: ModelConfig = RESNET50
    size: int = 224
    views: int = 2
    clips: int = 8
    batch_size: int = 2
    few: int = 8
    times: tuple[int, ...] = (1, 2, 4, 8)
    many: int = 32
    sizes: tuple[int, ...] = (1, 2, 4, 10)
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(clips=2, batch_size=1, few=4, times=(1, 4), many=16, sizes=(1, 4))


def run_stage1(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure on 340x256 clips of GOP 12, which are made in `folder` and kept. Raises ReskdError without decord."""
    if decord is None:
        raise ReskdError("bench stage1 measures against decord, which is not installed here: use a machine that has it")
    setup = QUICK if quick else FULL
    videos = make_videos(folder, SMALL[0], max(setup.clips, 2), setup.seconds)
    with tempfile.TemporaryDirectory() as temporary, ranks() as at:
        figures = _against_its_bound(Path(temporary), videos, setup, at, trace)
        figures += _over_more_clips(Path(temporary), videos, setup, at)
        figures += _memory(Path(temporary), videos, setup)
    show("stage1", figures, output)
    return figures


def _prepared(folder: Path, videos: Path, clips: int, shard: int = 1000) -> Dataset:
    """So many clips as a data set."""
    return prepare(linked(videos, folder / "videos", clips), folder / "data", clips_per_shard=shard, workers=0)


def _config(folder: Path, data: Dataset, model: ModelConfig, size: int, setup: Setup, output: str) -> CacheConfig:
    """Of stage one as its users run it, but for a batch that few clips fill."""
    checkpoint, policy = folder / f"{model.backbone}.safetensors", ViewPolicy(num_frames=model.num_frames)
    if not checkpoint.exists():
        torch.manual_seed(0)
        model = model.model_copy(update={"num_classes": len(data.classes)})
        save_model(checkpoint, build_model(model), ModelCard(model, data.classes, size, None, policy))
    return CacheConfig(
        data=data.path,
        output=folder / output,
        teacher=TeacherConfig(checkpoint=checkpoint, batch_size=setup.batch_size),
        views=setup.views,
        policy=policy,
        targets=TargetsConfig(),
        loader=LoaderConfig(),
    )


def _stage_one(config: CacheConfig, data: Dataset, at: Ranks) -> Callable[[], None]:
    """Fills a fresh cache, each time."""
    teacher, wanted = load_teacher(config, data, at.device)

    def run() -> None:
        shutil.rmtree(config.output, ignore_errors=True)
        fill(config, data, teacher, create_cache(config.output, wanted, root_arrays(teacher)), at)

    return run


def _against_its_bound(folder: Path, videos: Path, setup: Setup, at: Ranks, trace: Path | None) -> list[Figure]:
    data = _prepared(folder / "bound", videos, setup.clips)
    config = _config(folder, data, setup.model, setup.size, setup, "bound.zarr")
    stage_one, count = _stage_one(config, data, at), setup.clips * setup.views
    teacher, _ = load_teacher(config, data, at.device)
    workers, gpu = decoding_workers(config.loader), at.device.type == "cuda"
    _forward_rate(teacher, setup, gpu)  # the first is not counted
    rounds = []
    for _ in range(setup.runs):
        rate, decode, forward = (
            _rate(stage_one, count, gpu),
            _decode_rate(config, data, workers, gpu),
            _forward_rate(teacher, setup, gpu),
        )
        bound = min(decode, forward) if gpu else 1 / (1 / decode + 1 / forward)
        rounds.append((rate, decode, forward, bound, rate / bound))
    paid = paid_for(config.output, {})
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


def _rate(work: Callable[[], object], count: int, gpu: bool) -> float:
    """Of the whole machine, in so many things a second: by the wall clock beside a GPU, else by the seconds of its cores."""
    clock, share = (time.perf_counter, 1) if gpu else (core_seconds, cores())
    began = clock()
    work()
    return count * share / (clock() - began)


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

    return _rate(work, len(tasks) * config.views, gpu)


def _decode(task: tuple[bytes, np.ndarray]) -> int:
    return len(plain_decord(*task))


def _forward_rate(teacher: Teacher, setup: Setup, gpu: bool) -> float:
    """clip·views a second of the teacher over a batch that is there, in as many loops at once as stage one has forwards."""
    clips = torch.zeros(setup.batch_size, setup.model.num_frames, 3, setup.size, setup.size, dtype=torch.uint8)
    clips = clips.random_(generator=torch.Generator().manual_seed(0)).to(teacher.device)
    loops, batches = (1, 50) if gpu else (AT_ONCE, max(1, setup.clips // setup.batch_size // AT_ONCE))

    def loop(_: int) -> None:
        for _ in range(batches):
            found = teacher.forward(clips, ("logits",))
        found["logits"].cpu()  # waits for all of them

    with ThreadPoolExecutor(loops) as pool:
        return _rate(lambda: list(pool.map(loop, range(loops))), loops * batches * setup.batch_size, gpu)


def _over_more_clips(folder: Path, videos: Path, setup: Setup, at: Ranks) -> list[Figure]:
    """Milliseconds of a clip·view with a tiny teacher, over 1, 2, 4, … times the clips."""
    runs, figures = {}, []
    for times in setup.times:
        data = _prepared(folder / f"x{times}", videos, setup.few * times)
        runs[times] = _stage_one(_config(folder, data, TINY, 112, setup, f"x{times}.zarr"), data, at)
    runs[setup.times[0]]()
    each = {times: [] for times in runs}
    for _ in range(setup.runs):
        for times, run in runs.items():
            each[times].append(1e3 / _rate(run, setup.few * times * setup.views, at.device.type == "cuda"))
    for times, taken in each.items():
        figures.append(measured(f"stage one, tiny teacher, {setup.few * times} clips", taken, "ms a clip·view"))
    first, last = setup.times[0], setup.times[-1]
    growth = [b / a for a, b in zip(each[first], each[last], strict=True)]
    return [*figures, at_most(f"time a clip·view, {last} times the clips ÷ once", growth, "", FLAT)]


def _memory(folder: Path, videos: Path, setup: Setup) -> list[Figure]:
    """Peak of the process tree, in a fresh process for each number of clips; shards stay as large, so they are more."""
    peaks = {}
    for times in setup.sizes:
        data = _prepared(folder / f"m{times}", videos, setup.many * times, shard=setup.many)
        config = _config(folder, data, TINY, 112, setup, f"m{times}.zarr")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks[times] = pool.submit(_peak, config).result()
    first, last = setup.sizes[0], setup.sizes[-1]
    figures = [Figure(f"peak memory, {setup.many * times} clips", peak, "MB") for times, peak in peaks.items()]
    return [*figures, at_most(f"peak memory, {last} times the clips ÷ once", [peaks[last] / peaks[first]], "", FLAT)]


def _peak(config: CacheConfig) -> float:
    multiprocessing.set_start_method(None, force=True)  # the platform's for workers, not that of this process
    data = open_dataset(config.data)
    with ranks() as at, peak_memory(every=0.25) as peak:
        _stage_one(config, data, at)()
        return peak()
