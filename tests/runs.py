"""Configs of quick runs, and what tests compare of them."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

from stages.config import CacheConfig, TrainConfig, load_config
from stages.training.log import read_metrics

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


def rows_of(folder: Path, kind: str = "train") -> list[dict]:
    """Rows of metrics.jsonl without what the clock decides."""
    return [{k: v for k, v in row.items() if k != "clips_per_s"} for row in read_metrics(folder) if row["kind"] == kind]


def tree(path: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its relative name."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
