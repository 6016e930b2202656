"""The plot of a sweep: scores over GFLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from stages.runtime.plots import plot_text
from stages.sweep.pareto_front import Point


def plot_front(path: Path, points: Sequence[Point], front: Sequence[Point], label: str) -> None:
    """Write a PNG of the points' scores over their GFLOPs. A line connects the Pareto front."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for point in points:
        colour = "tab:blue" if point in front else "tab:gray"
        scores = point.scores
        axes.errorbar(point.gflops, scores.mean, yerr=scores.std or None, fmt="o", color=colour, capsize=2)
        axes.annotate(
            plot_text(point.name), (point.gflops, scores.mean), fontsize=7, xytext=(4, 4), textcoords="offset points"
        )
    axes.plot(
        [p.gflops for p in front], [p.scores.mean for p in front], color="tab:blue", alpha=0.5, label="Pareto front"
    )
    axes.set(xscale="log", xlabel="GFLOPs a view", ylabel=plot_text(label))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
