"""The demo: a small real data set through every stage, by the functions that the commands call."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from cache.reader import load_manifest
from cache.store import write_atomically
from stages.cache_teacher import cache_teacher
from stages.config import CacheConfig, DemoConfig, EvaluateConfig, TrainConfig
from stages.configfile import C, load_config
from stages.data.digits import make_digits
from stages.data.shards import open_dataset
from stages.evaluate import evaluate
from stages.plots import contact_sheet, learning_curves
from stages.prepare import prepare
from stages.train_student import train_student
from stages.training.log import console, read_metrics
from stages.training.state import in_use

CONFIGS = Path(__file__).parents[1] / "configs" / "demo"
SPLITS = ("train", "val", "test")
# A TSN's mean over frames is the same for opposite directions; a Swin this small finds no digits in so few epochs.
LABELS = {"tsn": "digit", "swin": "direction"}


def run_demo(config: DemoConfig) -> dict:
    """Run what isn't done yet, and return (and write) summary.json; curves.png and views.png lie beside it.

    {"teacher" | "baseline" | "distilled": {"top1", "top1_std", "per_seed": in percent, "gflops": per clip},
    "ledger", "wall_s", "peak_rss_mb": of the whole process tree, "seeds"}. A stage's seconds are those of the calls
    that did the work, so a rerun prints the same ledger.
    """
    out = config.output
    with in_use(out), _peak_memory(out / "memory.json") as peak:
        out.mkdir(parents=True, exist_ok=True)
        timed, seconds = _stopwatch(out / "seconds.json")
        timed("draw and encode clips", lambda: _draw(config))
        timed("prepare", lambda: [prepare(out / "videos" / s, out / "data" / s) for s in SPLITS])
        teacher = _train(config, "teacher", 0, timed)
        stored = _stage_config(CacheConfig, CONFIGS / "cache.yaml", config.cache, _cache_paths(out))
        cached = timed("cache-teacher", lambda: cache_teacher(stored))
        kinds = ("baseline", "distilled")
        runs = {kind: [_train(config, kind, seed, timed) for seed in range(config.seeds)] for kind in kinds}
        curves = {f"{kind} {s}": read_metrics(r) for kind, rs in runs.items() for s, r in enumerate(rs)}
        learning_curves(out / "curves.png", curves, read_metrics(teacher))
        size = _run_config(config, "distilled", 0).size
        contact_sheet(out / "views.png", open_dataset(stored.data), stored.output, size)
        scores = {kind: _scores(rs) for kind, rs in {"teacher": [teacher], **runs}.items()}
        summary = {
            **scores,
            "ledger": _ledger(stored, cached, runs["distilled"], seconds),
            "wall_s": sum(seconds.values()),
            "peak_rss_mb": peak(),
            "seeds": config.seeds,
        }
        write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    _show(summary, out)
    return summary


def _draw(config: DemoConfig) -> None:
    make_digits(
        config.output / "videos",
        clips=config.clips.model_dump(),
        size=config.video_size,
        frames=config.video_frames,
        labels=LABELS.get(config.model, "digit-direction"),
    )


def _train(config: DemoConfig, kind: str, seed: int, timed: Callable) -> Path:
    """Train one net and score it on the test split; returns its run folder."""
    run = _run_config(config, kind, seed)
    timed(f"train {kind} {seed}", lambda: train_student(run, resume=True))
    scored = EvaluateConfig(checkpoint=run.output / "last.safetensors", data=config.output / "data" / "test",
                          output=run.output / "test.json", batch_size=64)  # fmt: skip
    timed(f"evaluate {kind} {seed}", lambda: evaluate(scored))
    return run.output


def _run_config(config: DemoConfig, kind: str, seed: int) -> TrainConfig:
    out = config.output
    paths = {"output": out / "runs" / f"{kind}-{seed}", "data.train": out / "data/train", "data.val": out / "data/val"}
    if kind == "distilled":
        paths["data.cache"] = out / "teacher.zarr"
    file = CONFIGS / config.model / f"{kind}.yaml"
    return _stage_config(TrainConfig, file, getattr(config, kind), {**paths, "seed": seed})


def _cache_paths(out: Path) -> dict[str, Any]:
    checkpoint = out / "runs" / "teacher-0" / "last.safetensors"
    return {"data": out / "data/train", "output": out / "teacher.zarr", "teacher.checkpoint": checkpoint}


def _stage_config(model: type[C], file: Path, changes: dict, paths: dict[str, Any]) -> C:
    """A stage's config file with the demo's paths and the user's changes, by the rules of --set."""
    values = {key: value if isinstance(value, int) else str(value) for key, value in paths.items()}
    overrides = [f"{key}={json.dumps(value)}" for key, value in (values | dict(_flat(changes))).items()]
    return load_config(model, file, overrides)


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _scores(runs: list[Path]) -> dict:
    results = [json.loads((run / "test.json").read_text()) for run in runs]
    top1 = [result["top1"] for result in results]
    return {
        "top1": statistics.mean(top1),
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else 0.0,
        "per_seed": top1,
        "gflops": results[0]["gmacs"],
    }


def _ledger(stored: CacheConfig, cached: dict, distilled: list[Path], seconds: dict[str, float]) -> dict:
    """What the teacher was paid for, and what it would have been paid for inside the students' training."""
    manifest = load_manifest(stored.output)
    clips = sum(e.clips for e in manifest.identity.shards) - cached["quarantined"]
    results = [json.loads((run / "result.json").read_text()) for run in distilled]
    return {
        "teacher_clip_views": clips * manifest.views,
        "in_loop_clip_views": sum(result["clips_seen"] for result in results),
        "cache_bytes": cached["bytes"],
        "seconds": seconds,
    }


def _show(summary: dict, out: Path) -> None:
    table = Table("", "top-1 %", "per seed", "GFLOPs a clip", title="on fresh handwriting")
    for kind in ("teacher", "baseline", "distilled"):
        s = summary[kind]
        spread = f" ± {s['top1_std']:.2f}" if summary["seeds"] > 1 and kind != "teacher" else ""
        table.add_row(
            kind, f"{s['top1']:.2f}{spread}", " ".join(f"{t:.1f}" for t in s["per_seed"]), f"{s['gflops']:.4f}"
        )
    console.print(table)
    ledger = summary["ledger"]
    table = Table(title="ledger", show_header=False)
    table.add_row("teacher clip·views computed, once", f"{ledger['teacher_clip_views']:,}")
    table.add_row("the same students with the teacher in the loop", f"{ledger['in_loop_clip_views']:,}")
    table.add_row("cache", f"{ledger['cache_bytes'] / 1e6:.1f} MB")
    for name, seconds in ledger["seconds"].items():
        table.add_row(name, f"{seconds:.1f} s")
    table.add_row("all", f"{summary['wall_s']:.1f} s, at most {summary['peak_rss_mb']:.0f} MB")
    console.print(table)
    console.print(f"written: {out}/summary.json, curves.png, views.png")


def _stopwatch(path: Path) -> tuple[Callable[[str, Callable[[], Any]], Any], dict[str, float]]:
    """`timed(name, stage)`, and the seconds of each stage, its interrupted calls included, kept over reruns."""
    stored = json.loads(path.read_text()) if path.exists() else {"seconds": {}, "done": []}
    seconds, done = stored["seconds"], stored["done"]

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        console.rule(name)
        started = time.perf_counter()
        try:
            result = stage()
        finally:
            if name not in done:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
                write_atomically(path, json.dumps(stored).encode())
        if name not in done:
            done.append(name)
            write_atomically(path, json.dumps(stored).encode())
        return result

    return timed, seconds


@contextlib.contextmanager
def _peak_memory(path: Path) -> Iterator[Callable[[], float]]:
    """Samples, once a second, the memory of this process and all below it; the peak so far, in MB.

    A page that several processes share counts once, by its shares (PSS); where the system doesn't tell them, in each.
    """
    peak, stop = [json.loads(path.read_text()) if path.exists() else 0.0], threading.Event()

    def sample() -> None:
        process = psutil.Process()
        while not stop.wait(1.0):
            total = 0
            for p in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    memory = p.memory_full_info()
                    total += getattr(memory, "pss", memory.rss)
            peak[0] = max(peak[0], total / 1e6)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()
        write_atomically(path, json.dumps(peak[0]).encode())
