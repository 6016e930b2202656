"""Stage one as `bench stage1` runs it, and how long it takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.create import create_cache
from cache.view import ViewPolicy
from stages.bench.clocks import RUNS, core_seconds
from stages.bench.videos import linked
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import ModelConfig
from stages.prepare.prepare import prepare
from stages.runtime.distributed import Ranks, cores
from stages.shards.dataset import Dataset
from stages.stream.config import LoaderConfig
from stages.teacher.cache_teacher import compute_missing
from stages.teacher.config import CacheConfig, TargetsConfig, TeacherConfig
from stages.teacher.constants import root_arrays
from stages.teacher.load_teacher import load_teacher

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


def prepared(folder: Path, videos: Path, clips: int, shard: int = 1000) -> Dataset:
    """So many clips as a data set."""
    return prepare(linked(videos, folder / "videos", clips), folder / "data", clips_per_shard=shard, workers=0)


def config_for(folder: Path, data: Dataset, model: ModelConfig, size: int, setup: Setup, output: str) -> CacheConfig:
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


def filling(config: CacheConfig, data: Dataset, ranks: Ranks) -> Callable[[], None]:
    """Fills a fresh cache, each time."""
    teacher, wanted = load_teacher(config, data, ranks.device)

    def run() -> None:
        shutil.rmtree(config.output, ignore_errors=True)
        compute_missing(config, data, teacher, create_cache(config.output, wanted, root_arrays(teacher)), ranks)

    return run


def rate_of(work: Callable[[], object], count: int, gpu: bool) -> float:
    """Of the whole machine, in so many things a second: by the wall clock beside a GPU, else by the seconds of its cores."""
    clock, share = (time.perf_counter, 1) if gpu else (core_seconds, cores())
    began = clock()
    work()
    return count * share / (clock() - began)
