"""What the demo has found: the summary, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from stages.config.json_result import read_result
from stages.demo.config import DemoConfig
from stages.demo.runs import BESIDE, UNLABELLED_KINDS, student_kinds, students_folder
from stages.metrics.spread import SeedScores
from stages.runtime.terminal import console
from stages.sweep.cost import teacher_cost


def summarise(
    config: DemoConfig,
    teacher: Path,
    runs: Mapping[str, Sequence[Path]],
    cached: Sequence[Mapping],
    seconds: Mapping[str, float],
) -> dict:
    """The summary that `run_demo` returns, without the memory. `runs`: the run folders of each kind of student; `cached`:
    what `cache_teacher` returned; `seconds`: of each stage of this process."""
    kinds, beside = student_kinds(config), students_folder(config) / BESIDE
    seen = {
        config.output / kind.cache: sum(read_result(run / "result.json")["clips_seen"] for run in runs[name])
        for name, kind in kinds.items()
        if kind.cache
    }
    return {
        **{kind: _scores(folders) for kind, folders in {"teacher": [teacher], **runs}.items()},
        "cost": {
            **teacher_cost(seen),
            "cache_bytes": sum(result["bytes"] for result in cached),
            "seconds": dict(seconds),
            "seconds_beside": read_result(beside)["seconds"] if beside.exists() else {},
        },
        "wall_s": sum(seconds.values()),
        "seeds": config.seeds,
        "epochs_times": config.epochs_times,
    }


def _scores(runs: Sequence[Path]) -> dict:
    results = [read_result(run / "test.json") for run in runs]
    top1 = SeedScores(tuple(result["top1"] for result in results))
    return {
        "top1": top1.mean,
        "top1_std": top1.std,
        "per_seed": list(top1.values),
        "gflops": results[0]["gmacs"],
    }


def print_summary(summary: dict, out: Path, folder: Path) -> None:
    """Print the accuracies and the cost. `out` holds the page, `folder` the students' files."""
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
    for name, seconds in cost["seconds_beside"].items():
        table.add_row(f"beside: {name}", f"{seconds:.1f} s")
    table.add_row("all", f"{summary['wall_s']:.1f} s, peak memory {summary['peak_rss_mb']:.0f} MB")
    console.print(table)
    console.print(f"written: {out}/report.html (open it in a browser); in {folder}: summary.json, curves.png, views.png, "
                  "student.pt2", soft_wrap=True)  # fmt: skip
