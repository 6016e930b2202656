"""Small real data, made once a session: H.264 clips, prepared shards, a trained teacher, its cache."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cache.view import ViewPolicy
from stages.cache_teacher import cache_teacher
from stages.config import CacheConfig, TrainConfig, load_config
from stages.data.digits import make_digits
from stages.prepare import prepare
from stages.train_student import train_student

torch.set_num_threads(2)

NET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8}
MODEL = ["model.arch=tsm", "model.backbone=resnet18", f"model.args={NET}", "model.num_frames=4", "model.dropout=0.2"]
QUICK = [*MODEL, "optim.lr=0.005", "loader.workers=1", "schedule.epochs=2", "batch_size=16", "log_every=1"]
POLICY = {"num_frames": 4, "crop": "multi_scale_crop", "scales": [1.0, 0.8], "flip": 0.0}


def train_config(output: Path, data: SimpleNamespace, *changes: str) -> TrainConfig:
    """A quick run on `data`; later changes win."""
    fixed = [f"output={output}", f"data.train={data.train}", "size=16"]
    return load_config(TrainConfig, None, [*fixed, *QUICK, *changes])


def cache_config(output: Path, data: SimpleNamespace, teacher: Path, *changes: str) -> CacheConfig:
    fixed = [f"output={output}", f"data={data.train}", f"teacher.checkpoint={teacher}", f"policy={POLICY}"]
    return load_config(CacheConfig, None, [*fixed, "views=2", "loader.workers=1", *changes])


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> SimpleNamespace:
    """train: 200 clips in 3 shards of 80, 80, 40; val: 40 in one. `videos` are their files."""
    root = tmp_path_factory.mktemp("digits")
    make_digits(root / "videos", clips={"train": 200, "val": 40})
    for split in ("train", "val"):
        prepare(root / "videos" / split, root / split, clips_per_shard=80, workers=2)
    return SimpleNamespace(train=root / "train", val=root / "val", videos=root / "videos")


@pytest.fixture(scope="session")
def teacher(data, tmp_path_factory) -> Path:
    """The checkpoint of a net trained for a moment at 32 px."""
    output = tmp_path_factory.mktemp("runs") / "teacher"
    train_student(train_config(output, data, "size=32", f"policy={POLICY}", f"data.val={data.val}"))
    return output / "last.safetensors"


@pytest.fixture(scope="session")
def cached(data, teacher, tmp_path_factory) -> Path:
    """Two views of every clip of `data.train`, logits and features."""
    output = tmp_path_factory.mktemp("cache") / "teacher.zarr"
    cache_teacher(cache_config(output, data, teacher))
    return output


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real videos of many codecs that RESKD_CLIPS names."""
    folder = os.environ.get("RESKD_CLIPS")
    if not folder:
        pytest.skip("RESKD_CLIPS names no folder of real videos")
    return Path(folder)
