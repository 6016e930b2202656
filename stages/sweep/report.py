"""The report of a sweep: sweep.json, sweep.png, and two tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from rich.table import Table

from stages.config.json_result import read_result
from stages.remote.outputs import write_whole, written_at
from stages.remote.url_path import Location
from stages.runtime.plots import warn_if_it_fails
from stages.runtime.terminal import console
from stages.student.config import TrainConfig
from stages.sweep.cost import teacher_cost
from stages.sweep.pareto_front import over_seeds, pareto_front, print_front
from stages.sweep.plan import pending
from stages.sweep.plot import plot_front


def write_report(
    students: Mapping[str, TrainConfig],
    rows: Mapping[str, dict],
    failed: Mapping[str, str],
    seconds: Mapping[str, float],
    out: Location,
    test: Location | None,
) -> dict:
    """Write and print the report of the finished students (`rows`). Returns the content of sweep.json."""
    done = {name: students[name] for name in rows}
    points = over_seeds(done, rows)
    cost, front = _cost(done, rows, out, seconds), pareto_front(points)
    result = {
        "students": rows,
        "points": [
            {"name": p.name, "gflops": p.gflops, "score": p.scores.mean, "score_std": p.scores.std} for p in points
        ],
        "front": [point.name for point in front],
        "cost": cost,
        "failed": failed,
    }
    write_whole(out / "sweep.json", (json.dumps(result, indent=2) + "\n").encode())
    if points:
        metric = "mAP" if any(row["headline"] == "map" for row in rows.values()) else "top-1"
        data = test or "validation, each at its best"
        with warn_if_it_fails(f"{out / 'sweep.png'}"), written_at(out / "sweep.png") as picture:
            plot_front(picture, points, front, f"{metric} on {data}, %")
        with warn_if_it_fails("the table of the front"):
            print_front(points, front, f"{metric} %", f"on {data}")
        console.print(f"written: {out}/sweep.json, sweep.png", highlight=False, soft_wrap=True)
    with warn_if_it_fails("the table of the costs"):
        _print_cost(cost)
    return result


def note_decoded_epochs(out: Location, cohorts: Iterable[Mapping[str, TrainConfig]]) -> None:
    """Store in passes.json how many times each cohort decodes its data, before it does. A rerun of a cohort replaces its number.

    One process calls it for all cohorts.
    """
    epochs = _decoded_epochs(out)
    for cohort in cohorts:
        if names := pending(cohort):
            epochs[" + ".join(names)] = max(cohort[name].schedule.epochs for name in names)
    write_whole(out / "passes.json", (json.dumps(epochs) + "\n").encode())


def _decoded_epochs(out: Location) -> dict[str, int]:
    file = out / "passes.json"
    return read_result(file) if file.is_file() else {}


def _cost(
    done: Mapping[str, TrainConfig], rows: Mapping[str, dict], out: Location, seconds: Mapping[str, float]
) -> dict:
    """The teacher time, the epochs that were decoded and those that the students would decode alone, and the seconds."""
    seen: dict[Location, int] = {}
    for name, config in done.items():
        if config.data.cache:
            seen[config.data.cache] = seen.get(config.data.cache, 0) + rows[name]["clips_seen"]
    return {
        **teacher_cost(seen),
        "decode_passes": sum(_decoded_epochs(out).values()),
        "decode_passes_alone": sum(config.schedule.epochs for config in done.values()),
        "seconds": dict(seconds),
    }


def _print_cost(cost: Mapping) -> None:
    table = Table("cost", "this sweep", "each student alone, with the teacher in the loop")
    table.add_row("teacher, clip·views", f"{cost['teacher_clip_views']:,}", f"{cost['in_loop_clip_views']:,}")
    if cost["teacher_hours"] is not None:
        table.add_row("teacher time, hours", f"{cost['teacher_hours']:.3g}", f"{cost['in_loop_hours']:.3g}")
    table.add_row("decoding, epochs", str(cost["decode_passes"]), str(cost["decode_passes_alone"]))
    table.add_row("training, hours", f"{sum(cost['seconds'].values()) / 3600:.3g}", "")
    console.print(table)
