"""Configs of quick runs, and what tests compare of them."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cache.group import load_group
from pipeline import cli
from stages.config.file import load_config
from stages.runtime.log import read_metrics
from stages.student import loop
from stages.student.config import TrainConfig
from stages.student.train_student import train_student
from stages.teacher.config import CacheConfig

NET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8}
MODEL = ["model.arch=tsm", "model.backbone=resnet18", f"model.args={NET}", "model.num_frames=4", "model.dropout=0.2"]
# Clips are decoded once: that takes a third of a quick run.
READING = ["loader.workers=0", "loader.resident=true"]
QUICK = [*MODEL, *READING, "optim.lr=0.005", "schedule.epochs=2", "batch_size=16", "log_every=1"]
POLICY = {"num_frames": 4, "crop": "multi_scale_crop", "scales": [1.0, 0.8], "flip": 0.0}


def train_config(output: Path, data: SimpleNamespace, *changes: str) -> TrainConfig:
    """A quick run on `data`; later changes win."""
    fixed = [f"output={output}", f"data.train={data.train}", "size=16"]
    packed = ["loader.resident=false"] if any("pack=" in change for change in changes) else []
    return load_config(TrainConfig, None, [*fixed, *QUICK, *packed, *changes])


def cache_config(output: Path, data: SimpleNamespace, teacher: Path, *changes: str) -> CacheConfig:
    fixed = [f"output={output}", f"data={data.train}", f"teacher.checkpoint={teacher}", f"policy={POLICY}"]
    return load_config(CacheConfig, None, [*fixed, "views=2", "loader.workers=0", *changes])


def cut_at(config: TrainConfig, step: int) -> None:
    """Train until step `step`, and no further: what a kill leaves there, without a save."""
    whole = loop._optimizer_step

    def cut(at_work, *rest):
        if at_work[0].progress.step == step:
            raise KeyboardInterrupt
        whole(at_work, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_optimizer_step", cut)
        train_student(config)


def committed_views(cache: Path, shard: str) -> int:
    """How many views of a shard are committed."""
    group = load_group(Path(cache), shard)
    return group["views"] if group else 0


def rows_of(folder: Path, kind: str = "train") -> list[dict]:
    """Rows of metrics.jsonl without what the clock decides."""
    return [{k: v for k, v in row.items() if k != "clips_per_s"} for row in read_metrics(folder) if row["kind"] == kind]


def tree(path: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its relative name; of a cache's manifest without what the clock decides."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    found = {str(p.relative_to(path)): p.read_bytes() for p in files}
    if "zarr.json" in found and b'"paid"' in found["zarr.json"]:
        node = json.loads(found["zarr.json"])
        del node["attributes"]["notes"]["paid"], node["attributes"]["notes"]["paid_ledgers"]
        found["zarr.json"] = json.dumps(node).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def command(*arguments) -> str:
    """Run `pipeline.py ARGUMENTS` in this process; returns what it said."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def sets(changes: dict) -> list[str]:
    """As --set options."""
    return [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
