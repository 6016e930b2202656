"""Makes the study's data, nets, caches, packs and students, with the functions that the commands call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.contents import summary
from cache.group import load_manifest
from cache.store import write_atomically
from stages.bench.imagenet import save_imagenet_net
from stages.bench.real.arms import Arm
from stages.bench.real.clip_list import TENTH, few_labels, hold_out, read_clips, splits_of, write_list
from stages.bench.real.config import RealConfig
from stages.config.file import load_config
from stages.config.options import as_overrides
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.models.checkpoints import load_model, save_model
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.prepare.prepare import prepare
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.log import read_metrics
from stages.runtime.terminal import console
from stages.shards.classes import read_classes
from stages.student.config import TrainConfig
from stages.student.failures import StudentsFailed
from stages.student.train_student import train_cohort, train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.config import CacheConfig

CONFIGS = Path(__file__).parents[3] / "configs" / "real"
CHOICE = "choice"  # the side on which all choices are made: sources held out of the first split's train side
PRETRAINED = {"pretrained": "lite2", "own": "lite0"}  # teachers with ImageNet's weights as they are
EARLY = 3  # an early teacher is trained for a third of the epochs


@dataclass(frozen=True)
class StudentRun:
    """One student."""

    arm: Arm
    side: str  # CHOICE, or the name of a split
    seed: int
    rate: float
    epochs: int

    @property
    def stream(self) -> tuple:
        """Students with the same value can be trained on one stream of clips."""
        a = self.arm
        stored = (a.views, *a.features.items()) if a.teacher and not a.in_the_loop else None
        return self.side, self.seed, a.teacher, a.in_the_loop, stored, a.size, a.few_labels, a.large, self.epochs

    @property
    def name(self) -> str:
        text = "".join(c if c.isalnum() or c in "=.-" else "_" for c in self.arm.name)
        return f"{self.side}-{text}-{self.epochs}-{self.rate:g}-{self.seed}"


def make_data(config: RealConfig) -> dict[str, int]:
    """Make the shards of all sides. Returns the number of training clips of each side."""
    clips, data = read_clips(config.clips, config.videos, config.classes), config.output / "data"
    splits, counts = splits_of(clips), {}
    sides = {CHOICE: hold_out(clips, splits[0])}
    for split in [] if config.quick else splits:
        sides[split] = tuple([c for c in clips if c.sides[split] == side] for side in ("train", "test"))
    for side, (train, test) in sides.items():
        few = few_labels(train)
        labelled_only = [clip for clip in train if clip.path in few]
        lists = {"train": (train, None), "test": (test, None), "few": (train, few), "labelled": (labelled_only, None)}
        for name, (part, labelled) in lists.items():
            write_list(data / f"{side}-{name}.csv", part, config.videos, labelled)
            classes = read_classes(data / f"{side}-train") if name != "train" else None
            prepare(data / f"{side}-{name}.csv", data / f"{side}-{name}", classes=classes, check="quick")
        counts[side] = len(train)
    return counts


def train_net(config: RealConfig, name: str, side: str) -> dict:
    """Train the teacher ("tuned" or "early") on a side. Returns its top-1: {"test", "one_frame", "curve"}, in percent."""
    folder = config.output / "nets" / f"{side}-{name}"
    epochs = max(1, config.teacher_epochs // (EARLY if name == "early" else 1))
    changes = {"output": folder, **_data(config, side), "schedule.epochs": epochs, "size": config.teacher_size,
               "schedule.warmup_epochs": min(0.5, epochs / 4), "init.path": imagenet_checkpoint(config, "lite2")}  # fmt: skip
    train_student(_config(TrainConfig, "teacher.yaml", changes), resume=True, go_on=RUN_AGAIN)
    curve = [(row["epoch"], row["top1"]) for row in read_metrics(folder) if row["kind"] == "val"]
    return {"test": curve[-1][1], "one_frame": _one_frame(config, folder, side), "curve": curve}


def make_caches(config: RealConfig, runs: Sequence[StudentRun]) -> dict:
    """Make the one cache that these runs read, and its packs of crops.

    Returns {"bytes": of a clip·view's maps on disk, "top1": of the teacher on its training views, None for maps alone}.
    """
    arm, side = runs[0].arm, runs[0].side
    path, data = _cache_path(config, arm, side), config.output / "data" / f"{side}-train"
    views = max(run.arm.views or config.views for run in runs)
    stored = load_manifest(path).views if (path / "zarr.json").exists() else 0
    changes = {"output": path, "data": data, "views": max(views, stored), "targets.features": dict(arm.features),
               "teacher.checkpoint": _teacher(config, arm, side), "teacher.size": config.teacher_size}  # fmt: skip
    if arm.teacher in PRETRAINED:
        changes["targets.logits"] = None
    result = cache_teacher(_config(CacheConfig, "cache.yaml", changes))
    for size in sorted({run.arm.size or config.size for run in runs}):
        crops = {"data": data, "cache": path, "output": _pack_path(config, arm, side, size), "frames": "crops", "size": size,
                 "loader": {"workers": 0}}  # fmt: skip
        pack(load_config(PackConfig, None, as_overrides(crops)))
    sizes = summary(path, load_manifest(path))["bytes"]["of_clip_view"]
    return {"bytes": sizes["features"], "top1": result["top1"]}


def train_runs(config: RealConfig, runs: Sequence[StudentRun]) -> list[dict]:
    """Train students of one stream. Returns for each {"top1": at its end, "curve": [[epoch, top1]], "seconds"}, in percent."""
    folders = [config.output / "students" / run.name for run in runs]
    results = [folder / "outcome.json" for folder in folders]
    missing = {
        run.name: _student(config, run) for run, result in zip(runs, results, strict=True) if not result.exists()
    }
    failed = False
    try:
        trained = train_cohort(missing, resume=True, go_on=RUN_AGAIN) if missing else {}
    except StudentsFailed as error:  # a rate that is too high for an arm: it is not the best
        console.print(str(error), markup=False)
        trained, failed = {name: {"seconds": 0.0} for name in missing}, True
    for folder, result in zip(folders, results, strict=True):
        if folder.name in trained and failed and not (folder / "result.json").exists():
            write_atomically(result, json.dumps({"top1": 0.0, "curve": [[0, 0.0]], "seconds": 0.0}).encode())
        elif folder.name in trained:
            curve = [(row["epoch"], row["top1"]) for row in read_metrics(folder) if row["kind"] == "val"]
            seconds = trained[folder.name]["seconds"] / len(trained)
            outcome = {"top1": curve[-1][1], "curve": curve, "seconds": seconds}
            write_atomically(result, json.dumps(outcome).encode())
    return [json.loads(result.read_text()) for result in results]


def _student(config: RealConfig, run: StudentRun) -> TrainConfig:
    arm = run.arm
    changes: dict[str, Any] = {
        "output": config.output / "students" / run.name,
        "seed": run.seed,
        "size": config.teacher_size if arm.large else arm.size or config.size,
        "optim.lr": run.rate,
        "schedule.epochs": run.epochs,
        "schedule.warmup_epochs": min(0.5, run.epochs / 4),
        "schedule.val_every": max(1, run.epochs // 10),
        "init.path": imagenet_checkpoint(config, "lite0"),
        **_data(config, run.side),
        **{f"losses.{name}": weight for name, weight in arm.losses.items()},
    }
    if arm.few_labels and arm.teacher:
        changes["data.train"] = config.output / "data" / f"{run.side}-few"
    elif arm.few_labels:  # as many steps on the labelled clips alone
        changes["data.train"] = config.output / "data" / f"{run.side}-labelled"
        changes |= {"schedule.epochs": TENTH * run.epochs, "schedule.val_every": TENTH * max(1, run.epochs // 10)}
    if arm.teacher is None or arm.in_the_loop:
        changes["policy"] = _config(CacheConfig, "cache.yaml", {}).policy.to_json()
    if arm.in_the_loop:
        changes["teacher"] = {"checkpoint": str(_teacher(config, arm, run.side)), "size": config.teacher_size}
    elif arm.teacher:
        changes |= {"data.cache": _cache_path(config, arm, run.side), "data.views": arm.views or config.views}
        if not arm.few_labels:
            changes["data.pack"] = _pack_path(config, arm, run.side, arm.size or config.size)
    return _config(TrainConfig, "student.yaml", changes)


def _one_frame(config: RealConfig, folder: Path, side: str) -> float:
    """The teacher's top-1 on the middle frame of each clip: how much of a clip a single picture says."""
    checkpoint, scored = folder / "one_frame.safetensors", folder / "one_frame.json"
    if not scored.exists():
        model, card = load_model(folder / "last.safetensors")
        net = card.model.model_copy(update={"num_frames": 1})
        policy = dataclasses.replace(card.eval_policy, num_frames=1)
        save_model(checkpoint, model, dataclasses.replace(card, model=net, eval_policy=policy))
        evaluate(EvaluateConfig(checkpoint=checkpoint, data=config.output / "data" / f"{side}-test", output=scored,
                                loader={"workers": 0}))  # fmt: skip
    return json.loads(scored.read_text())["top1"]


def _teacher(config: RealConfig, arm: Arm, side: str) -> Path:
    if arm.teacher in PRETRAINED:
        return imagenet_checkpoint(config, PRETRAINED[arm.teacher])
    return config.output / "nets" / f"{side}-{arm.teacher}" / "last.safetensors"


def imagenet_checkpoint(config: RealConfig, name: str) -> Path:
    path = config.output / "nets" / f"imagenet-{name}.safetensors"
    save_imagenet_net(path, name, num_frames=4, size=config.teacher_size)
    return path


def _cache_path(config: RealConfig, arm: Arm, side: str) -> Path:
    maps = "-".join(f"{key}{value}" for key, value in arm.features.items())
    return config.output / "caches" / f"{side}-{arm.teacher}-{maps}.zarr"


def _pack_path(config: RealConfig, arm: Arm, side: str, size: int) -> Path:
    return config.output / "packs" / f"{_cache_path(config, arm, side).stem}-{size}"


def _data(config: RealConfig, side: str) -> dict[str, Path]:
    return {"data.train": config.output / "data" / f"{side}-train", "data.val": config.output / "data" / f"{side}-test"}


def _config(model: type, file: str, changes: dict[str, Any]):
    """The config in `file` with `changes`, which follow the rules of --set."""
    return load_config(model, CONFIGS / file, as_overrides(changes))
