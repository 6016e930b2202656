"""What a sweep comes to: students over seeds, and which of them nothing beats for as few GFLOPs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from stages.config.file import flat
from stages.runtime.log import console
from stages.student.config import TrainConfig


@dataclass(frozen=True)
class Point:
    """Students that differ in their seeds alone."""

    name: str
    gflops: float  # of a view
    scores: tuple[float, ...]  # in percent, of each seed

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


def identity(config: TrainConfig, *without: str) -> str:
    """What makes a student another one than the rest: its config, but for the keys `without`."""
    values = flat(config.model_dump(mode="json"))
    return json.dumps({key: value for key, value in values.items() if key not in without}, sort_keys=True)


def over_seeds(students: Mapping[str, TrainConfig], rows: Mapping[str, Mapping]) -> list[Point]:
    """A point for students that are alike but for seed and folder; none for those that were never validated."""
    groups: dict[str, list[str]] = {}
    for name, config in students.items():
        if rows[name]["score"] is not None:
            groups.setdefault(identity(config, "output", "seed"), []).append(name)
    points = []
    for names in groups.values():
        parts = [part for part in names[0].split(",") if len(names) == 1 or not part.startswith("seed=")]
        scores = tuple(rows[name]["score"] for name in names)
        points.append(Point(",".join(parts) or "student", rows[names[0]]["gflops"], scores))
    return points


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at as few GFLOPs, in the order of these."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gflops, -p.mean)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return front


def show_front(points: Sequence[Point], front: Sequence[Point], by: str, title: str) -> None:
    table = Table("student", "GFLOPs a view", by, "on the front", title=title)
    for point in sorted(points, key=lambda p: p.gflops):
        spread = f" ± {point.std:.2f} ({len(point.scores)} seeds)" if len(point.scores) > 1 else ""
        table.add_row(point.name, f"{point.gflops:.4g}", f"{point.mean:.2f}{spread}", "*" if point in front else "")
    console.print(table)
