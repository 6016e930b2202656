"""The students of the benches of stage two, and their data: videos, a teacher of random weights, its cache, packs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache.view import ViewPolicy
from stages.bench.videos import Kind, link_videos, make_videos
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import ModelConfig
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.prepare.prepare import prepare
from stages.student.config import TrainConfig
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.config import CacheConfig

FRAMES = 8
SMALL_NET = {"channels": [16, 32, 64, 64], "layers": [1, 1, 1, 1], "stem_type": "deep", "stem_width": 8,
             "output_stride": 8, "zero_init_last": False}  # fmt: skip
# The demo's network, with eight frames.
DEMO = ModelConfig(arch="tsm", backbone="resnet18", args=SMALL_NET, num_frames=FRAMES, dropout=0.0)
R18 = ModelConfig(arch="tsm", backbone="resnet18", num_frames=FRAMES)
R50 = ModelConfig(arch="tsm", backbone="resnet50", num_frames=FRAMES)
# A teacher of the same width as the demo's. At 64 px its maps are 8x4x4x64: 16 KB in float16.
TEACHER = ModelConfig(backbone="resnet18", args={"channels": [8, 16, 32, 64], "layers": [1, 1, 1, 1], "output_stride": 16},
                      num_frames=FRAMES)  # fmt: skip

DISTILLED = {"logit_kl": 1.0, "feature_mse": 1.0}


@dataclass(frozen=True)
class Bench:
    """The files of a bench. Each is made at the first call of its method."""

    folder: Path
    videos: Path  # a folder of class folders
    teacher: ModelConfig = TEACHER
    teacher_size: int = 64
    views: int = 2

    def data(self) -> Path:
        path = self.folder / "data"
        if not path.exists():
            prepare(self.videos, path, workers=0)
        return path

    def checkpoint(self) -> Path:
        """The checkpoint of a teacher with random weights. It takes as long as a trained one."""
        path = self.folder / "teacher.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            model = self.teacher.model_copy(update={"num_classes": 2})
            policy = ViewPolicy(num_frames=FRAMES, jitter=False, crop="center", flip=0.0)
            save_model(path, build_model(model), ModelCard(model, ("a", "b"), self.teacher_size, None, policy))
        return path

    def cache_config(self, **changes: Any) -> CacheConfig:
        fixed = {"data": self.data(), "output": self.folder / "teacher.zarr", "views": self.views,
                 "teacher": {"checkpoint": self.checkpoint(), "batch_size": 4}, "policy": {"num_frames": FRAMES},
                 "targets": {"features": "float16"}}  # fmt: skip
        return CacheConfig.model_validate(fixed | changes)

    def cache(self) -> Path:
        config = self.cache_config()
        if not config.output.exists():
            cache_teacher(config)
        return config.output

    def pack_config(self, name: str = "pack", **changes: Any) -> PackConfig:
        return PackConfig.model_validate({"data": self.data(), "output": self.folder / name, **changes})

    def packed(self, frames: str = "all", size: int = 112, psnr: float | None = None) -> Path:
        """A pack. One with all frames serves plain training too."""
        config = self.pack_config(
            f"pack-{frames}-{size}-{psnr}", frames=frames, size=size, cache=self.cache(), psnr=psnr
        )
        if not config.output.exists():
            pack(config)
        return config.output

    def student(self, output: str, model: ModelConfig, size: int, **changes: Any) -> TrainConfig:
        """The config of plain training on fresh views, or with the cache in `changes`."""
        fixed = {"output": self.folder / output, "data": {"train": self.data()}, "model": model, "size": size,
                 "batch_size": 8, "schedule": {"epochs": 1}, "log_every": 20, "optim": {"name": "sgd", "lr": 0.001}}  # fmt: skip
        return TrainConfig.model_validate(fixed | changes)

    def cohort(
        self, output: str, students: int, model: ModelConfig, size: int, **changes: Any
    ) -> dict[str, TrainConfig]:
        """The configs of distilled students that differ only in their seeds."""
        fixed = {"losses": DISTILLED, **changes}
        return {
            f"seed={seed}": self.student(f"{output}/seed={seed}", model, size, seed=seed, **fixed)
            for seed in range(students)
        }


def make_bench(
    folder: Path, kept: Path, kind: Kind, clips: int, times: int = 1, seconds: float = 10.0, **teacher: Any
) -> Bench:
    """A bench in `folder` with `clips` videos of a kind, each under `times` names. The videos are made in `kept`."""
    return Bench(
        folder, link_videos(make_videos(kept, kind, clips, seconds), folder / "videos", clips * times), **teacher
    )
