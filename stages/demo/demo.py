"""The demo: every stage on a small real data set, with the functions that the commands call."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from cache.store import write_atomically
from stages.config.file import C, flat, load_config
from stages.config.json_result import read_result
from stages.config.options import as_yaml
from stages.demo.config import DemoConfig
from stages.demo.digits import make_digits
from stages.demo.plots import contact_sheet, learning_curves
from stages.demo.use_student import export_student, predict_videos, print_predictions
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.metrics.spread import SeedScores
from stages.prepare.prepare import prepare
from stages.report.report import write_report
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.lock import locked
from stages.runtime.log import read_metrics
from stages.runtime.memory import peak_memory
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.stage_timer import stage_timer
from stages.runtime.terminal import console
from stages.shards.classes import read_classes
from stages.shards.dataset import open_dataset
from stages.student.config import TrainConfig
from stages.student.train_student import train_student
from stages.sweep.cost import teacher_cost
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.config import CacheConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
SPLITS = ("train", "val", "test")
# A TSN's mean over frames is the same for opposite directions; a Swin this small finds no digits in so few epochs.
LABELS = {"tsn": "digit", "swin": "direction"}


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


def run_demo(config: DemoConfig) -> dict:
    """Run the stages that aren't done yet. Write summary.json, curves.png, views.png and report.html. Returns the summary:

    {"teacher" | "baseline" | "distilled": {"top1", "top1_std", "per_seed": in percent, "gflops": per clip}, "cost",
    "wall_s", "peak_rss_mb": of the whole process tree, "seeds"}. With `config.unlabelled`, "unlabelled" is a student that is
    distilled from all clips; the other students see only the labelled clips. A rerun reports the seconds of the first
    run, because finished stages are not timed again.
    """
    out = config.output
    with locked(out), _peak_memory(out / "memory.json") as peak:
        out.mkdir(parents=True, exist_ok=True)
        timed, seconds = stage_timer(out / "seconds.json")
        timed("draw and encode clips", lambda: _draw(config))
        timed("prepare", lambda: _prepare(config))
        teacher = _train(config, "teacher", 0, timed)
        kinds = UNLABELLED_KINDS if config.unlabelled else KINDS
        caches = [_cache_config(config, kind) for kind in kinds.values() if kind.cache]
        cached = [timed(f"cache-teacher {stored.output.stem}", partial(cache_teacher, stored)) for stored in caches]
        runs = {kind: [_train(config, kind, seed, timed) for seed in range(config.seeds)] for kind in kinds}
        curves = {f"{kind} {s}": read_metrics(run) for kind, folders in runs.items() for s, run in enumerate(folders)}
        student = runs["distilled"][0] / "last.safetensors"
        timed("export", partial(export_student, student, out / "data" / "test", out / "student"))
        lines = timed("predict", partial(predict_videos, student, out / "videos" / "test", out / "predictions.jsonl"))
        scores = {kind: _scores(folders) for kind, folders in {"teacher": [teacher], **runs}.items()}
        summary = {
            **scores,
            "cost": {
                **teacher_cost({out / kind.cache: runs[name] for name, kind in kinds.items() if kind.cache}),
                "cache_bytes": sum(result["bytes"] for result in cached),
                "seconds": seconds,
            },
            "wall_s": sum(seconds.values()),
            "peak_rss_mb": peak(),
            "seeds": config.seeds,
        }
        write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        with warn_if_it_fails(f"{out / 'curves.png'}"):
            learning_curves(out / "curves.png", curves, read_metrics(teacher))
        with warn_if_it_fails(f"{out / 'views.png'}"):
            size = _run_config(config, "distilled", 0).size
            contact_sheet(out / "views.png", open_dataset(caches[-1].data), caches[-1].output, size)
        with warn_if_it_fails(f"{out / 'report.html'}"):
            write_report([out], out / "report.html")
    with warn_if_it_fails("the tables of the summary"):
        print_predictions(lines)
        _print_summary(summary, out)
    return summary


def _draw(config: DemoConfig) -> None:
    make_digits(
        config.output / "videos",
        clips=config.clips.model_dump(),
        size=config.video_size,
        frames=config.video_frames,
        labels=LABELS.get(config.model, "digit-direction"),
    )


def _prepare(config: DemoConfig) -> None:
    """Prepare the splits. With `unlabelled`, also `few` (the labelled training clips) and `mixed` (all training clips)."""
    videos, data = config.output / "videos", config.output / "data"
    for split in SPLITS:
        prepare(videos / split, data / split)
    if not config.unlabelled:
        return
    names = sorted(path.relative_to(videos).as_posix() for path in (videos / "train").glob("*/*"))
    kept = {name for i, name in enumerate(names) if i % LABELLED == 0}
    label = {name: name.split("/")[1] if name in kept else "" for name in names}
    for subset, chosen in (("few", sorted(kept)), ("mixed", names)):
        write_atomically(videos / f"{subset}.csv", "".join(f"{name},{label[name]}\n" for name in chosen).encode())
        prepare(videos / f"{subset}.csv", data / subset, classes=read_classes(data / "train"))


def _train(config: DemoConfig, kind: str, seed: int, timed: Callable) -> Path:
    """Train one network and evaluate it on the test split. Returns its run folder."""
    run = _run_config(config, kind, seed)
    timed(f"train {kind} {seed}", lambda: train_student(run, resume=True, go_on=RUN_AGAIN))
    evaluation = EvaluateConfig(checkpoint=run.output / "last.safetensors", data=config.output / "data" / "test",
                          output=run.output / "test.json", batch_size=64, loader=run.loader)  # fmt: skip
    timed(f"evaluate {kind} {seed}", lambda: evaluate(evaluation))
    return run.output


def _run_config(config: DemoConfig, name: str, seed: int) -> TrainConfig:
    out = config.output
    kind = {"teacher": Kind("teacher", "train"), **(UNLABELLED_KINDS if config.unlabelled else KINDS)}[name]
    paths: dict[str, Any] = {"output": out / "runs" / f"{name}-{seed}", "data.val": out / "data/val", "seed": seed}
    paths["data.train"] = out / "data" / kind.data
    if kind.cache:
        paths["data.cache"] = out / kind.cache
    run = _stage_config(TrainConfig, CONFIGS / config.model / f"{kind.file}.yaml", getattr(config, kind.file), paths)
    schedule = run.schedule.model_copy(update={"epochs": run.schedule.epochs * kind.epochs,
                                               "val_every": run.schedule.val_every * kind.epochs})  # fmt: skip
    return run.model_copy(update={"schedule": schedule})


def _cache_config(config: DemoConfig, kind: Kind) -> CacheConfig:
    out = config.output
    checkpoint = out / "runs" / "teacher-0" / "last.safetensors"
    paths = {"data": out / "data" / kind.data, "output": out / kind.cache, "teacher.checkpoint": checkpoint}
    return _stage_config(CacheConfig, CONFIGS / "cache.yaml", config.cache, paths)


def _stage_config(model: type[C], file: Path, changes: dict, paths: dict[str, Any]) -> C:
    """The config in `file` with the demo's paths and the user's changes, which follow the rules of --set."""
    values = {key: value if isinstance(value, int) else str(value) for key, value in paths.items()}
    overrides = [f"{key}={as_yaml(value)}" for key, value in (values | flat(changes)).items()]
    return load_config(model, file, overrides)


def _scores(runs: list[Path]) -> dict:
    results = [read_result(run / "test.json") for run in runs]
    top1 = SeedScores(tuple(result["top1"] for result in results))
    return {
        "top1": top1.mean,
        "top1_std": top1.std,
        "per_seed": list(top1.values),
        "gflops": results[0]["gmacs"],
    }


def _print_summary(summary: dict, out: Path) -> None:
    table = Table("", "top-1 %", "per seed", "GFLOPs a clip", title="on fresh handwriting")
    for kind in (kind for kind in ("teacher", *UNLABELLED_KINDS) if kind in summary):
        s = summary[kind]
        spread = f" ± {s['top1_std']:.2f}" if summary["seeds"] > 1 and kind != "teacher" else ""
        table.add_row(
            kind, f"{s['top1']:.2f}{spread}", " ".join(f"{t:.1f}" for t in s["per_seed"]), f"{s['gflops']:.4f}"
        )
    console.print(table)
    cost = summary["cost"]
    table = Table(title="cost", show_header=False)
    table.add_row("teacher, clip·views", f"{cost['teacher_clip_views']:,}")
    table.add_row("clip·views with the teacher in the loop", f"{cost['in_loop_clip_views']:,}")
    table.add_row("cache", f"{cost['cache_bytes'] / 1e6:.1f} MB")
    for name, seconds in cost["seconds"].items():
        table.add_row(name, f"{seconds:.1f} s")
    table.add_row("all", f"{summary['wall_s']:.1f} s, peak memory {summary['peak_rss_mb']:.0f} MB")
    console.print(table)
    console.print(f"written: {out}/report.html (open it in a browser), summary.json, curves.png, views.png, student.pt2",
                  soft_wrap=True)  # fmt: skip


@contextlib.contextmanager
def _peak_memory(path: Path) -> Iterator[Callable[[], float]]:
    """Gives a function that returns the peak memory of the process tree in MB. The peak is kept in `path` over reruns."""
    with peak_memory(so_far=read_result(path) if path.exists() else 0.0) as peak:
        try:
            yield peak
        finally:
            write_atomically(path, json.dumps(peak()).encode())
