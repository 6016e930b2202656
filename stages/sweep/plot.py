"""The sweep's picture: scores over GFLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def pareto(path: Path, points: Sequence, front: Sequence, label: str) -> None:
    """Scores (`mean` and `std`) over `gflops` of points with a `name`; the front is a line."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for point in points:
        colour = "tab:blue" if point in front else "tab:gray"
        axes.errorbar(point.gflops, point.mean, yerr=point.std or None, fmt="o", color=colour, capsize=2)
        axes.annotate(point.name, (point.gflops, point.mean), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes.plot([p.gflops for p in front], [p.mean for p in front], color="tab:blue", alpha=0.5, label="Pareto front")
    axes.set(xscale="log", xlabel="GFLOPs a view", ylabel=label)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
