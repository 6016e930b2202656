"""What `sweep` and `bench fidelity` write about many students: sweep.json and study.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cache.json_file import read_json
from stages.metrics.spread import SeedScores
from stages.remote.url_path import Location
from stages.report.curve_chart import Line
from stages.report.runs import curve
from stages.sweep.pareto_front import Point


@dataclass(frozen=True)
class Sweep:
    name: str
    points: tuple[Point, ...]
    metric: str  # of the scores
    cost: Mapping[str, float | None]  # numbers of "cost"; "seconds": of all cohorts
    failed: Mapping[str, str]  # student -> reason


@dataclass(frozen=True)
class StudyArm:
    """`bytes`: of a clip·view's maps; None without a cache. `validation`: its curves over steps."""

    name: str
    top1: SeedScores
    bytes: float | None
    schedule: float
    steps_to_labels: float | None
    validation: Line


@dataclass(frozen=True)
class Study:
    name: str
    best: str
    views: int
    arms: tuple[StudyArm, ...]


def read_sweep(path: Location, name: str) -> Sweep:
    """Raises OSError, ValueError, KeyError, TypeError or AttributeError if the file isn't of a sweep."""
    values = read_json(path, nan=True)
    points = []
    for point in values["points"]:
        mean, std = float(point["score"]), float(point["score_std"])
        # Two values have this mean and this standard deviation: a point needs no more of its seeds.
        scores = SeedScores((mean,) if not std else (mean - std / 2**0.5, mean + std / 2**0.5))
        points.append(Point(str(point["name"]), float(point["gflops"]), scores))
    several = any(student["headline"] == "map" for student in values["students"].values())
    cost = {key: None if value is None else float(value) for key, value in values["cost"].items() if key != "seconds"}
    cost["seconds"] = float(sum(values["cost"]["seconds"].values()))
    failed = {str(student): str(reason) for student, reason in values["failed"].items()}
    return Sweep(name, tuple(points), "mAP" if several else "top-1", cost, failed)


def read_study(path: Location, name: str) -> Study:
    """Raises OSError, ValueError, KeyError, TypeError or AttributeError if the file isn't of a study."""
    values, arms = read_json(path, nan=True), []
    for arm in values["arms"]:
        curves = tuple(curve([(float(step), float(top1)) for step, top1 in seed]) for seed in arm["curves"])
        arms.append(
            StudyArm(
                name=str(arm["arm"]),
                top1=SeedScores(tuple(map(float, arm["top1"]))),
                bytes=None if arm["bytes"] is None else float(arm["bytes"]),
                schedule=float(arm["schedule"]),
                steps_to_labels=None if arm["steps_to_labels"] is None else float(arm["steps_to_labels"]),
                validation=Line(str(arm["arm"]), curves),
            )
        )
    return Study(name, str(values["best"]), int(values["views"]), tuple(arms))
