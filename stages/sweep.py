"""A sweep: many students of one teacher, in as few streams of clips as they fit into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.config import EvaluateConfig, TrainConfig
from stages.configfile import flat
from stages.evaluate import evaluate
from stages.ledger import teacher_ledger
from stages.plots import pareto
from stages.train_student import train_cohort
from stages.training.log import console
from stages.training.loop import Interrupted
from stages.training.shared import shared_keys
from stages.training.state import in_use
from stages.training.stopwatch import stopwatch


@dataclass(frozen=True)
class Point:
    """Students that differ in their seeds alone."""

    name: str
    gflops: float  # of a view
    top1: tuple[float, ...]  # in percent, of each seed
    seconds: float  # of their share in the training

    @property
    def mean(self) -> float:
        return float(np.mean(self.top1))

    @property
    def std(self) -> float:
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else 0.0


def run_sweep(
    students: Mapping[str, TrainConfig], *, at_once: int = 8, test: Path | None = None, dry_run: bool = False
) -> dict:
    """Train and score what isn't done yet; returns (and writes) sweep.json, beside the students' folders and sweep.png.

    Students that can share a stream (see `training.shared.SHARED`) are trained as cohorts of at most `at_once`, the others
    one cohort after another. `test`: a data set on which the last weights are scored; without it, it is each one's best
    validation. A rerun goes on where the sweep was; students may be added.
    {"students": {name: {"top1", "gflops", "seconds", ...}}, "points": over seeds, "front": names on the Pareto front of
    accuracy over GFLOPs, "ledger", "failed": {name: reason}}.
    Raises ReskdError before any training for a student that can't be trained, and at the end where some failed.
    """
    cohorts = _cohorts(students, at_once)
    out = _folder(students)
    _say_plan(cohorts, at_once)
    for cohort in cohorts:  # what a later one lacks is said before the first begins
        with console.capture() as said:
            train_cohort(cohort, dry_run=True)
        if dry_run:
            console.print(said.get(), markup=False, highlight=False, end="")
    if dry_run:
        return {"cohorts": [list(cohort) for cohort in cohorts]}
    out.mkdir(parents=True, exist_ok=True)
    with in_use(out / "sweep"):
        timed, seconds = stopwatch(out / "seconds.json")
        failed = {}
        for cohort in cohorts:
            try:
                timed(" + ".join(cohort), partial(train_cohort, cohort, resume=True))
            except Interrupted:
                raise
            except ReskdError as error:
                missing = [name for name, config in cohort.items() if not (config.output / "result.json").exists()]
                failed |= dict.fromkeys(missing, str(error))
        done = {name: config for name, config in students.items() if name not in failed}
        rows = {name: _scored(config, test) for name, config in done.items()}
        points = _over_seeds(done, rows)
        ledger = _ledger(done, cohorts, seconds)
        front = pareto_front(points)
        result = {
            "students": rows,
            "points": [{"name": p.name, "gflops": p.gflops, "top1": p.mean, "top1_std": p.std} for p in points],
            "front": [point.name for point in front],
            "ledger": ledger,
            "failed": failed,
        }
        write_atomically(out / "sweep.json", (json.dumps(result, indent=2) + "\n").encode())
        if points:
            pareto(out / "sweep.png", points, front, test is not None)
            _show(points, front, ledger, test)
            console.print(f"written: {out}/sweep.json, sweep.png", highlight=False)
    if failed:
        raise ReskdError(f"{len(failed)} of {len(students)} students failed:\n"
                         + "\n".join(dict.fromkeys(failed.values())) + "\nrun it again: what is done stays")  # fmt: skip
    return result


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at as few GFLOPs, in the order of these."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gflops, -p.mean)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return front


def _cohorts(students: Mapping[str, TrainConfig], at_once: int) -> list[dict[str, TrainConfig]]:
    """Students that agree on the stream together, at most `at_once` of them, in their order."""
    streams: dict[str, list[str]] = {}
    for name, config in students.items():
        streams.setdefault(json.dumps(shared_keys(config), sort_keys=True), []).append(name)
    return [
        {name: students[name] for name in names[i : i + at_once]}
        for names in streams.values()
        for i in range(0, len(names), at_once)
    ]


def _folder(students: Mapping[str, TrainConfig]) -> Path:
    folders = {config.output.parent for config in students.values()}
    if len(folders) != 1:
        raise ReskdError(f"a sweep's students lie in one folder: remove their own `output` ({len(folders)} are given)")
    return folders.pop()


def _scored(config: TrainConfig, test: Path | None) -> dict:
    result = json.loads((config.output / "result.json").read_text())
    row = {"gflops": result["gmacs"], "seconds": result["seconds"], "clips_seen": result["clips_seen"]}
    if test is None:
        best = result["best"] or {}
        return row | {"top1": best.get("top1"), "epoch": best.get("epoch")}
    scored = config.output / "test.json"
    done = json.loads(scored.read_text()) if scored.exists() else {}
    if done.get("data") != str(test):
        done = evaluate(EvaluateConfig(checkpoint=config.output / "last.safetensors", data=test, output=scored,
                                       batch_size=64, loader=config.loader))  # fmt: skip
    return row | {"top1": done["top1"]}


def _over_seeds(students: Mapping[str, TrainConfig], rows: Mapping[str, dict]) -> list[Point]:
    """A point for students that are alike but for seed and folder; none for those that were never validated."""
    groups: dict[str, list[str]] = {}
    for name, config in students.items():
        alike = {k: v for k, v in flat(config.model_dump(mode="json")).items() if k not in ("seed", "output")}
        if rows[name]["top1"] is not None:
            groups.setdefault(json.dumps(alike), []).append(name)
    points = []
    for names in groups.values():
        parts = [part for part in names[0].split(",") if len(names) == 1 or not part.startswith("seed=")]
        top1 = tuple(rows[name]["top1"] for name in names)
        seconds = sum(rows[name]["seconds"] for name in names)
        points.append(Point(",".join(parts) or "student", rows[names[0]]["gflops"], top1, seconds))
    return points


def _ledger(
    done: Mapping[str, TrainConfig], cohorts: Sequence[Mapping[str, TrainConfig]], seconds: Mapping[str, float]
) -> dict:
    """What the teacher and decoding were paid for; alone, each student would have decoded each of its epochs."""
    caches = sorted({config.data.cache for config in done.values() if config.data.cache})
    distilled = [config.output for config in done.values() if config.data.cache]
    passes = [max(config.schedule.epochs for config in cohort.values()) for cohort in cohorts]
    alone = sum(config.schedule.epochs for cohort in cohorts for config in cohort.values())
    return {
        **teacher_ledger(caches, distilled),
        "decode_passes": sum(passes),
        "decode_passes_alone": alone,
        "seconds": dict(seconds),
    }


def _say_plan(cohorts: Sequence[Mapping[str, TrainConfig]], at_once: int) -> None:
    table = Table("cohort", "students", "epochs decoded", title=f"sweep: at most {at_once} students on one stream")
    for number, cohort in enumerate(cohorts, 1):
        table.add_row(str(number), " ".join(cohort), str(max(c.schedule.epochs for c in cohort.values())))
    console.print(table)


def _show(points: Sequence[Point], front: Sequence[Point], ledger: dict, test: Path | None) -> None:
    table = Table(
        "student", "GFLOPs a view", "top-1 %", "on the front", title=f"on {test or 'validation, each at its best'}"
    )
    for point in sorted(points, key=lambda p: p.gflops):
        spread = f" ± {point.std:.2f} ({len(point.top1)} seeds)" if len(point.top1) > 1 else ""
        table.add_row(point.name, f"{point.gflops:.4g}", f"{point.mean:.2f}{spread}", "*" if point in front else "")
    console.print(table)
    table = Table("ledger", "this sweep", "each alone, the teacher in the loop")
    table.add_row("teacher clip·views", f"{ledger['teacher_clip_views']:,}", f"{ledger['in_loop_clip_views']:,}")
    if ledger["teacher_hours"] is not None:
        table.add_row("teacher hours", f"{ledger['teacher_hours']:.3g}", f"{ledger['in_loop_hours']:.3g}")
    table.add_row("passes of decoding", str(ledger["decode_passes"]), str(ledger["decode_passes_alone"]))
    table.add_row("hours of training", f"{sum(ledger['seconds'].values()) / 3600:.3g}", "")
    console.print(table)
