"""What the benches of stage two train, and on what: videos, a teacher that was drawn, its cache, packs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache.view import ViewPolicy
from stages.bench.videos import Kind, linked, make_videos
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
# The demo's net, on eight frames.
DEMO = ModelConfig(arch="tsm", backbone="resnet18", args=SMALL_NET, num_frames=FRAMES, dropout=0.0)
R18 = ModelConfig(arch="tsm", backbone="resnet18", num_frames=FRAMES)
R50 = ModelConfig(arch="tsm", backbone="resnet50", num_frames=FRAMES)
# A teacher of the demo's width, whose maps are 8x4x4x64 at 64 px: 16 KB in float16.
TEACHER = ModelConfig(backbone="resnet18", args={"channels": [8, 16, 32, 64], "layers": [1, 1, 1, 1], "output_stride": 16},
                      num_frames=FRAMES)  # fmt: skip

DISTILLED = {"logit_kl": 1.0, "feature_mse": 1.0}


@dataclass(frozen=True)
class Bench:
    """The files of a bench, each made when it is first asked for."""

    folder: Path
    videos: Path  # class folders
    teacher: ModelConfig = TEACHER
    teacher_size: int = 64
    views: int = 2

    def data(self) -> Path:
        path = self.folder / "data"
        if not path.exists():
            prepare(self.videos, path, workers=0)
        return path

    def checkpoint(self) -> Path:
        """Of a teacher with its first weights: what it says is nonsense, and takes as long as sense."""
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
        """A pack; one of all frames serves plain training, too."""
        config = self.pack_config(
            f"pack-{frames}-{size}-{psnr}", frames=frames, size=size, cache=self.cache(), psnr=psnr
        )
        if not config.output.exists():
            pack(config)
        return config.output

    def student(self, output: str, model: ModelConfig, size: int, **changes: Any) -> TrainConfig:
        """Plain training on fresh views, unless `changes` give it a cache."""
        fixed = {"output": self.folder / output, "data": {"train": self.data()}, "model": model, "size": size,
                 "batch_size": 8, "schedule": {"epochs": 1}, "log_every": 20, "optim": {"name": "sgd", "lr": 0.001}}  # fmt: skip
        return TrainConfig.model_validate(fixed | changes)

    def cohort(
        self, output: str, students: int, model: ModelConfig, size: int, **changes: Any
    ) -> dict[str, TrainConfig]:
        """Students that are distilled and differ in their seeds alone."""
        fixed = {"losses": DISTILLED, **changes}
        return {
            f"seed={seed}": self.student(f"{output}/seed={seed}", model, size, seed=seed, **fixed)
            for seed in range(students)
        }


def bench_of(
    folder: Path, kept: Path, kind: Kind, clips: int, times: int = 1, seconds: float = 10.0, **teacher: Any
) -> Bench:
    """A bench in `folder`, of so many videos of a kind (which are made in `kept`), each so many times."""
    return Bench(folder, linked(make_videos(kept, kind, clips, seconds), folder / "videos", clips * times), **teacher)
