"""The stages that `bench faults` disturbs: small real ones, with what each makes when it isn't disturbed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.view import ViewPolicy
from stages.bench.faults.process import in_fork, run
from stages.demo.digits import CLASSES, make_digits
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import ModelConfig

OUTPUT = "output-a"  # of every stage, in the folder in which it runs; a name that no message has otherwise
NET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8}
POLICY = {"num_frames": 4, "crop": "multi_scale_crop", "scales": [1.0, 0.8], "flip": 0.0}
CLOCK = {"seconds", "clips_per_s", "cost", "paid", "paid_ledgers"}  # keys whose values the clock decides


@dataclass(frozen=True)
class Sizes:
    clips: int = 24
    clips_per_shard: int = 8
    epochs: int = 3
    workers: int = 1  # of prepare, which take a second to start


@dataclass(frozen=True)
class Stage:
    """`again`: what is added to the arguments of a run that goes on. `seconds`: of an undisturbed run."""

    name: str
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    seconds: float
    content: Mapping[str, str]  # of the output of an undisturbed run


def make_stages(root: Path, sizes: Sizes, left_out: Collection[str] = ()) -> dict[str, Stage]:
    """Make the videos, a teacher, and each stage's output, undisturbed: root/STAGE/OUTPUT. Returns the stages by name."""
    in_fork(_make_inputs, root, sizes)
    stages = {}
    for name, (arguments, again) in _commands(root, sizes).items():
        if name in left_out:
            continue
        folder, began = root / name, time.perf_counter()
        folder.mkdir()
        ended = run(arguments, folder)
        if ended.status != 0:
            raise RuntimeError(f"{name} fails undisturbed: {ended.text}")
        stages[name] = Stage(name, arguments, again, time.perf_counter() - began, content(folder / OUTPUT))
    return stages


def output_of(root: Path, stage: str) -> Path:
    return root / stage / OUTPUT


def _make_inputs(root: Path, sizes: Sizes) -> str:
    torch.manual_seed(0)
    make_digits(root / "videos", clips={"train": sizes.clips, "val": 8}, workers=1)
    model, policy = ModelConfig(backbone="resnet18", args=NET, num_frames=4, num_classes=len(CLASSES)), ViewPolicy(4)
    classes = tuple(sorted(CLASSES))
    save_model(root / "teacher.safetensors", build_model(model), ModelCard(model, classes, 32, None, policy))
    return ""


def _commands(root: Path, sizes: Sizes) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each stage its arguments, and those that a run that goes on has, too."""
    train, val = output_of(root, "prepare"), output_of(root, "prepare val")
    cache, student = output_of(root, "cache-teacher"), output_of(root, "train-student")
    model = _sets({"model.arch": "tsm", "model.backbone": "resnet18", "model.args": NET, "model.num_frames": 4, "size": 16,
                   "optim.lr": 0.005, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "loader.workers": 1})  # fmt: skip
    distilled = _sets({"losses.feature_mse": 5, "losses.logit_kl": 1, "data.train": train, "data.val": val,
                       "data.cache": cache, "schedule.epochs": sizes.epochs, "output": OUTPUT})  # fmt: skip
    shards = ("--output", OUTPUT, "--clips-per-shard", str(sizes.clips_per_shard), "--set", f"workers={sizes.workers}",
              "--class-order", f"{root}/teacher.safetensors")  # fmt: skip
    one_worker = ("--set", "loader.workers=1")
    packed = _sets({"data.pack": output_of(root, "pack")})
    return {
        "prepare": (("prepare", f"{root}/videos/train", *shards), ()),
        "prepare val": (("prepare", f"{root}/videos/val", *shards), ()),
        "cache-teacher": (("cache-teacher", *_sets({"data": train, "output": OUTPUT, "policy": POLICY, "views": 2,
                           "teacher.checkpoint": root / "teacher.safetensors", "targets.features": {"codec": "int8", "dims": 8},
                           "loader.workers": 1})), ()),
        "pack": (("pack", "--data", str(train), "--cache", str(cache), "--output", OUTPUT, "--frames", "crops", "--size", "16",
                  *one_worker), ()),
        "train-student": (("train-student", *model, *distilled), ("--resume",)),
        "train-student from a pack": (("train-student", *model, *distilled, *packed), ("--resume",)),
        "evaluate": (("evaluate", f"{student}/last.safetensors", "--data", str(val), "--output", f"{OUTPUT}/scores.json",
                      *one_worker), ()),
        "sweep": (("sweep", *model, *distilled, *_sets({"schedule.epochs": 1}), "--grid", "seed=0,1", "--test", str(val)), ()),
    }  # fmt: skip


def _sets(values: Mapping[str, object]) -> list[str]:
    texts = {key: json.dumps(str(value) if isinstance(value, Path) else value) for key, value in values.items()}
    return [part for key, text in texts.items() for part in ("--set", f"{key}={text}")]


def content(folder: Path) -> dict[str, str]:
    """sha256 of each file, by its relative name. Left out are what runs have cost, plots and TensorBoard's logs, and last.pt:
    it holds generators that nothing draws from and nothing seeds."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    kept = [
        p for p in files if p.suffix not in (".png", ".lock", ".pt") and p.name not in ("seconds.json", "passes.json")
    ]
    return {str(p.relative_to(folder)): hashlib.sha256(_without_clock(p)).hexdigest() for p in kept}


def _without_clock(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix not in (".json", ".jsonl"):
        return data
    try:
        values = [json.loads(line) for line in (data.splitlines() if file.suffix == ".jsonl" else [data])]
    except ValueError:
        return data
    return json.dumps([_stripped(value) for value in values]).encode() if _has_clock(values) else data


def _has_clock(value: object) -> bool:
    return _stripped(value) != value


def _stripped(value: object) -> object:
    if isinstance(value, dict):
        return {key: _stripped(part) for key, part in value.items() if key not in CLOCK}
    return [_stripped(part) for part in value] if isinstance(value, list) else value


def difference(stage: Stage, folder: Path) -> str | None:
    """How the output of `stage` in `folder` differs from that of an undisturbed run; None if it doesn't."""
    differing = sorted({name for name, _ in stage.content.items() ^ content(folder / OUTPUT).items()})
    return f"other content: {', '.join(differing[:5])}" if differing else None


def run_again(stage: Stage, folder: Path) -> str | None:
    """Run a stage that was disturbed to its end; returns what is wrong with it or with its output."""
    ended = run((*stage.arguments, *stage.again), folder)
    if ended.status != 0:
        return f"the rerun ends with status {ended.status}: {ended.last_lines()}"
    return difference(stage, folder)


def new_folder(folder: Path) -> Path:
    """An empty folder, in which what earlier trials left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
