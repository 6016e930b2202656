"""The points of charts of accuracy over cost: a net each, or the seeds of one as a mean with a spread."""

from __future__ import annotations

from collections.abc import Sequence

from stages.metrics.spread import SeedScores
from stages.remote.url_path import resolved
from stages.report.evaluations import Evaluation
from stages.report.seed_groups import SeedGroup
from stages.sweep.pareto_front import Point

Chart = tuple[str, str, str]  # `Evaluation.comparable`
Alike = tuple[int, str]  # px, the checkpoint's file name: equal for the seeds of a point


def evaluated_points(groups: Sequence[SeedGroup], evaluations: Sequence[Evaluation]) -> dict[Chart, list[Point]]:
    """The points of each data set and protocol. The seeds of a group are one point at each size and checkpoint."""
    number_of = {resolved(run.path): number for number, group in enumerate(groups) for run in group.runs}
    charts: dict[Chart, dict[int | None, dict[Alike, list[Evaluation]]]] = {}
    for evaluation in evaluations:
        number, alike = number_of.get(evaluation.run_folder), (evaluation.size, evaluation.checkpoint.name)
        of_group = charts.setdefault(evaluation.comparable, {}).setdefault(number, {})
        of_group.setdefault(alike, []).append(evaluation)
    return {
        chart: [point for number, by_alike in of_chart.items() for point in _points(number, by_alike, groups)]
        for chart, of_chart in charts.items()
    }


def _points(number: int | None, by_alike: dict[Alike, list[Evaluation]], groups: Sequence[SeedGroup]) -> list[Point]:
    """The points of a group's evaluations; of those of no group, if `number` is None."""
    points = []
    for (size, checkpoint), of in by_alike.items():
        seeds = len({evaluation.run_folder for evaluation in of})
        if number is None or seeds < len(of) or (seeds == 1 and len(groups[number].runs) > 1):
            points += [Point(e.name, e.gflops, SeedScores((e.score,))) for e in of]
            continue
        name = groups[number].name + (f" ({seeds} seeds)" if seeds > 1 else "")
        name += f", {checkpoint}, {size} px" if len(by_alike) > 1 else ""
        points.append(Point(name, of[0].gflops, SeedScores(tuple(e.score for e in of))))
    return points


def validated_points(groups: Sequence[SeedGroup]) -> list[Point]:
    """The best validations of each group whose GFLOPs are known."""
    points = []
    for group in groups:
        scores = tuple(run.best for run in group.runs if run.best is not None)
        if scores and group.runs[0].gflops is not None:
            points.append(Point(group.label, group.runs[0].gflops, SeedScores(scores)))
    return points
