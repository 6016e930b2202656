"""Makes the study's data, teachers, caches and students, with the functions that the commands call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.contents import summary
from cache.group import load_manifest
from cache.store import write_atomically
from stages.bench.arms import Arm
from stages.bench.config import StudyConfig
from stages.config.file import load_config
from stages.config.options import as_overrides
from stages.demo.digits import CLASSES, make_digits
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.models.architectures import build_model
from stages.models.video_model import VideoModel, model_stats
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.prepare.prepare import prepare
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.log import read_metrics
from stages.runtime.terminal import console
from stages.student.config import TrainConfig
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.config import CacheConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "study"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Net:
    """A teacher of the study."""

    width: int  # channels of its map
    student_grid: tuple[int, int]  # [h, w] of the student's map
    top1: float  # on the test split


def make_data(config: StudyConfig) -> None:
    """Make the videos and the shards of all splits."""
    folder = config.output
    make_digits(folder / "videos", clips=config.clips.model_dump(), size=config.video_size, frames=config.video_frames)
    for split in SPLITS:
        prepare(folder / "videos" / split, folder / "data" / split)


def train_teacher(config: StudyConfig, name: str) -> Net:
    """Train a teacher ("teacher" or "wide") if it isn't trained yet."""
    file, folder = CONFIGS / f"{name}.yaml", config.output / name
    changes = {"output": folder, "schedule.epochs": config.teacher_epochs,
               "schedule.warmup_epochs": min(1.0, config.teacher_epochs / 4), **_data(config)}  # fmt: skip
    train_student(_config(TrainConfig, file, changes), resume=True, go_on=RUN_AGAIN)
    student = _config(TrainConfig, CONFIGS / "student.yaml", {"output": folder, **_data(config)})
    grid = model_stats(_built(student), student.size).grid
    teacher = _config(TrainConfig, file, changes)
    width = model_stats(_built(teacher), teacher.size).width
    return Net(width, tuple(grid[1:]), _test(config, folder)["top1"])


def make_cache(config: StudyConfig, arm: Arm) -> float | None:
    """Make the cache and the pack that an arm needs. Returns the bytes on disk of a clip·view's maps; None without a cache."""
    if arm.cache is None:
        return None
    path = _cache_path(config, arm)
    views = max(arm.views, load_manifest(path).views if (path / "zarr.json").exists() else 0)
    changes: dict[str, Any] = {
        "output": path,
        "data": config.output / "data" / "train",
        "teacher.checkpoint": config.output / arm.net / "last.safetensors",
        "views": views,
        "targets.features": arm.features,
    }
    result = cache_teacher(_config(CacheConfig, CONFIGS / "cache.yaml", changes))
    if result["top1"] is not None:
        console.print(f"{path.name}: the teacher's top-1 on its views {result['top1']:.1f} %")
    if arm.packed:
        changes = {
            "data": config.output / "data" / "train",
            "cache": path,
            "output": _pack_path(config, arm),
            "views": views,
        }
        pack(_config(PackConfig, CONFIGS / "pack.yaml", changes))
    return summary(path, load_manifest(path))["bytes"]["of_clip_view"]["features"]


def run_arm(config: StudyConfig, arm: Arm, seed: int) -> dict:
    """Train and evaluate one student: {"top1": on the test split, "curve": (step, validation top-1) of each epoch}."""
    folder = config.output / "students" / f"{_slug(arm.name)}{f'-v{arm.views}' if arm.views else ''}-{seed}"
    done = folder / "outcome.json"
    if done.exists():
        return json.loads(done.read_text())
    epochs = max(1, round(config.epochs * arm.schedule))
    changes: dict[str, Any] = {
        "output": folder,
        "seed": seed,
        "schedule.epochs": epochs,
        "optim.lr": config.lr_distilled if arm.losses else config.lr_labels,
        **_data(config),
        **{f"losses.{name}": weight for name, weight in arm.losses.items()},
    }
    if arm.teacher == "cached":
        changes |= {"data.cache": _cache_path(config, arm), "data.views": arm.views}
    if arm.packed:
        changes |= {"data.pack": _pack_path(config, arm), "loader.resident": False}
    if arm.teacher == "online":
        changes["teacher.checkpoint"] = config.output / arm.net / "last.safetensors"
    if arm.teacher != "cached":
        changes["policy"] = _config(CacheConfig, CONFIGS / "cache.yaml", {}).policy.to_json()
    train_student(_config(TrainConfig, CONFIGS / "student.yaml", changes), resume=True, go_on=RUN_AGAIN)
    curve = [(row["step"], row["top1"]) for row in read_metrics(folder) if row["kind"] == "val"]
    result = {"top1": _test(config, folder)["top1"], "curve": curve}
    write_atomically(done, json.dumps(result).encode())
    return result


def _test(config: StudyConfig, folder: Path) -> dict:
    scored = folder / "test.json"
    if not scored.exists():
        loader = {"workers": 0, "resident": True}
        result = evaluate(EvaluateConfig(checkpoint=folder / "last.safetensors", data=config.output / "data" / "test",
                                         batch_size=64, loader=loader))  # fmt: skip
        write_atomically(scored, json.dumps(result).encode())  # the files beside it are for people
    return json.loads(scored.read_text())


def _data(config: StudyConfig) -> dict[str, Path]:
    return {"data.train": config.output / "data" / "train", "data.val": config.output / "data" / "val"}


def _cache_path(config: StudyConfig, arm: Arm) -> Path:
    return config.output / "caches" / f"{arm.cache}.zarr"


def _pack_path(config: StudyConfig, arm: Arm) -> Path:
    return config.output / "packs" / f"{arm.cache}-crops-1"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in name.replace("/", "."))


def _built(config: TrainConfig) -> VideoModel:
    return build_model(config.model.model_copy(update={"num_classes": len(CLASSES)}))


def _config(model: type, file: Path, changes: dict[str, Any]):
    """The config in `file` with `changes`, which follow the rules of --set."""
    return load_config(model, file, as_overrides(changes))
