"""Runs stage one for `bench stage1`, and measures rates."""

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
from stages.bench.videos import link_videos
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
    """The ResNet-50 processes `clips` clips in each of `runs`. A tiny teacher processes `few` clips times each of `times`,
    and, for the memory, `many` clips (enough to fill all queues) times each of `sizes`."""

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


def make_dataset(folder: Path, videos: Path, clips: int, shard: int = 1000) -> Dataset:
    """A data set of `clips` clips: the videos under several names."""
    return prepare(link_videos(videos, folder / "videos", clips), folder / "data", clips_per_shard=shard, workers=0)


def stage_one_config(
    folder: Path, data: Dataset, model: ModelConfig, size: int, setup: Setup, output: str
) -> CacheConfig:
    """The config of stage one with its defaults and a small batch. The teacher has random weights."""
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


def cache_filler(config: CacheConfig, data: Dataset, ranks: Ranks) -> Callable[[], None]:
    """A function that runs stage one into a new cache at each call."""
    teacher, wanted = load_teacher(config, data, ranks.device)

    def run() -> None:
        shutil.rmtree(config.output, ignore_errors=True)
        compute_missing(config, data, teacher, create_cache(config.output, wanted, root_arrays(teacher)), ranks)

    return run


def measure_rate(work: Callable[[], object], count: int, gpu: bool) -> float:
    """How many of the `count` items of `work` the whole machine does per second: in wall time with a GPU, else in core
    seconds."""
    clock, share = (time.perf_counter, 1) if gpu else (core_seconds, cores())
    began = clock()
    work()
    return count * share / (clock() - began)
