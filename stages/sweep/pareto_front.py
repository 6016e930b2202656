"""The points of a sweep (students, averaged over seeds) and their Pareto front."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from stages.config.file import flat
from stages.metrics.spread import SeedScores
from stages.runtime.terminal import console
from stages.student.config import TrainConfig


@dataclass(frozen=True)
class Point:
    """Students that differ only in their seeds."""

    name: str
    gflops: float  # of a view
    scores: SeedScores


def student_identity(config: TrainConfig, *without: str) -> str:
    """The config as text, without the keys `without`. Two students with equal texts are the same."""
    values = flat(config.model_dump(mode="json"))
    return json.dumps({key: value for key, value in values.items() if key not in without}, sort_keys=True)


def over_seeds(students: Mapping[str, TrainConfig], rows: Mapping[str, Mapping]) -> list[Point]:
    """One point for all students whose configs differ only in seed and output folder. Students without a score are left
    out."""
    groups: dict[str, list[str]] = {}
    for name, config in students.items():
        if rows[name]["score"] is not None:
            groups.setdefault(student_identity(config, "output", "seed"), []).append(name)
    points = []
    for names in groups.values():
        parts = [part for part in names[0].split(",") if len(names) == 1 or not part.startswith("seed=")]
        scores = SeedScores(tuple(rows[name]["score"] for name in names))
        points.append(Point(",".join(parts) or "student", rows[names[0]]["gflops"], scores))
    return points


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points with a higher mean score than every point of as few or fewer GFLOPs, in the order of their GFLOPs."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gflops, -p.scores.mean)):
        if not front or point.scores.mean > front[-1].scores.mean:
            front.append(point)
    return front


def print_front(points: Sequence[Point], front: Sequence[Point], metric: str, title: str) -> None:
    """A table with a row for each point."""
    table = Table("student", "GFLOPs a view", metric, "on the front", title=title)
    for point in sorted(points, key=lambda p: p.gflops):
        scores = point.scores
        spread = f" ± {scores.std:.2f} ({len(scores.values)} seeds)" if len(scores.values) > 1 else ""
        table.add_row(point.name, f"{point.gflops:.4g}", f"{scores.mean:.2f}{spread}", "*" if point in front else "")
    console.print(table)
