"""The demo's nets and caches: their configs and folders, and their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.file import C, flat, load_config
from stages.config.options import as_overrides
from stages.demo.config import DemoConfig
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.stage_timer import stage_timer
from stages.student.config import TrainConfig
from stages.student.train_student import train_student
from stages.teacher.config import CacheConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
BESIDE = "beside.json"  # the seconds of what is trained in the second process


@dataclass(frozen=True)
class Kind:
    """One kind of student: its config file, its training data and its cache."""

    file: str  # config file, in the folder of the network
    data: str
    cache: str | None = None
    epochs: int = 1  # multiplies the file's, so that a smaller data set has as many steps


KINDS = {"baseline": Kind("baseline", "train"), "distilled": Kind("distilled", "train", "teacher.zarr")}
LABELLED = 4  # with `unlabelled`, one clip in 4 keeps its label
# Labels cost more than clips. The teacher's outputs for clips without a label teach as much as those for the others.
UNLABELLED_KINDS = {
    "baseline": Kind("baseline", "few", None, LABELLED),
    "distilled": Kind("distilled", "few", "few.zarr", LABELLED),
    "unlabelled": Kind("distilled", "mixed", "mixed.zarr"),
}


def student_kinds(config: DemoConfig) -> dict[str, Kind]:
    """The kinds of students, by name."""
    return UNLABELLED_KINDS if config.unlabelled else KINDS


def students_folder(config: DemoConfig) -> Path:
    """Where the students are, and what is made of them. Data, teacher and caches serve students of every length."""
    return config.output if config.epochs_times == 1 else config.output / f"x{config.epochs_times}"


def train_teacher(config: DemoConfig, timed: Callable) -> Path:
    """Train and evaluate the teacher. Returns its run folder."""
    return _train(config, "teacher", 0, timed)


def train_students(config: DemoConfig, kind: str, timed: Callable) -> None:
    """Train and evaluate the students of one kind, one of each seed."""
    for seed in range(config.seeds):
        _train(config, kind, seed, timed)


def train_without_cache(config: DemoConfig, timed: Callable) -> None:
    """Train and evaluate all students that need no cache."""
    for name, kind in student_kinds(config).items():
        if not kind.cache:
            train_students(config, name, timed)


def train_beside(config: DemoConfig) -> None:
    """`train_without_cache` for a second process: the seconds are stored in a file of its own."""
    train_without_cache(config, stage_timer(students_folder(config) / BESIDE)[0])


def run_folders(config: DemoConfig, kind: str) -> list[Path]:
    """The run folders of one kind of student."""
    return [students_folder(config) / "runs" / f"{kind}-{seed}" for seed in range(config.seeds)]


def runs_without_cache(config: DemoConfig) -> list[Path]:
    """The run folders of the students that need no cache."""
    return [run for name, kind in student_kinds(config).items() if not kind.cache for run in run_folders(config, name)]


def _train(config: DemoConfig, kind: str, seed: int, timed: Callable) -> Path:
    run = run_config(config, kind, seed)
    timed(f"train {kind} {seed}", lambda: train_student(run, resume=True, go_on=RUN_AGAIN))
    evaluation = EvaluateConfig(checkpoint=run.output / "last.safetensors", data=config.output / "data" / "test",
                          output=run.output / "test.json", batch_size=64, loader=run.loader)  # fmt: skip
    timed(f"evaluate {kind} {seed}", partial(evaluate, evaluation))
    return run.output


def run_config(config: DemoConfig, name: str, seed: int) -> TrainConfig:
    """The config of one training: the teacher's ("teacher", 0), or a student's."""
    teacher = name == "teacher"
    kind = Kind("teacher", "train") if teacher else student_kinds(config)[name]
    out, folder = config.output, config.output if teacher else students_folder(config)
    paths: dict[str, Any] = {"output": folder / "runs" / f"{name}-{seed}", "data.val": out / "data/val", "seed": seed}
    paths["data.train"] = out / "data" / kind.data
    if kind.cache:
        paths["data.cache"] = out / kind.cache
    run = _stage_config(TrainConfig, CONFIGS / config.model / f"{kind.file}.yaml", getattr(config, kind.file), paths)
    times = 1 if teacher else kind.epochs * config.epochs_times
    schedule = run.schedule.model_copy(update={"epochs": run.schedule.epochs * times,
                                               "val_every": run.schedule.val_every * times})  # fmt: skip
    return run.model_copy(update={"schedule": schedule})


def cache_config(config: DemoConfig, kind: Kind) -> CacheConfig:
    """The config of the cache that students of a kind read."""
    out = config.output
    checkpoint = out / "runs" / "teacher-0" / "last.safetensors"
    paths = {"data": out / "data" / kind.data, "output": out / kind.cache, "teacher.checkpoint": checkpoint}
    return _stage_config(CacheConfig, CONFIGS / "cache.yaml", config.cache, paths)


def _stage_config(model: type[C], file: Path, changes: dict, paths: dict[str, Any]) -> C:
    """The config in `file` with the demo's paths and the user's changes, which follow the rules of --set."""
    return load_config(model, file, as_overrides(paths | flat(changes)))
