"""Accuracy over cost: GFLOPs of a net, or bytes of a cache."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from stages.metrics.spread import SeedScores
from stages.report.parts import Chart
from stages.report.svg import COLOURS, GREY, INK, Names, draw
from stages.runtime.plots import plot_text
from stages.sweep.pareto_front import Point, pareto_front

DEVIATION = "A vertical line is one standard deviation over seeds, up and down."
MAX_LABELS = 12  # more names in the picture hide one another: then the pointer shows them


def front_chart(caption: str, points: Sequence[Point], x_label: str, y_label: str) -> Chart:
    """The points' mean scores over their GFLOPs. A line connects the Pareto front."""
    front, costs = pareto_front(points), [point.gflops for point in points]

    def paint(axes: Axes, names: Names) -> None:
        axes.plot([p.gflops for p in front], [p.scores.mean for p in front], color=COLOURS[0], alpha=0.6)
        for i, point in enumerate(points):
            colour = COLOURS[0] if point in front else GREY
            text = f"{point.name}: {spread(point.scores)} % at {point.gflops:.4g} GFLOPs"
            _paint_point(axes, names, f"point-{i}", (point.gflops, point.scores), colour, text)
            if len(points) <= MAX_LABELS:
                _write_name(axes, point.name, (point.gflops, point.scores.mean), _is_right(point.gflops, costs))
        _log_x(axes, x_label, y_label)

    note = "The line is the Pareto front: no net of as few GFLOPs is better. The pointer on a point shows its name."
    if any(point.scores.std for point in points):
        note += f" {DEVIATION}"
    return draw(caption, paint, note=note)


def bytes_chart(
    caption: str, cached: Sequence[tuple[str, float, SeedScores]], others: Sequence[tuple[str, SeedScores]]
) -> Chart:
    """Scores over bytes: `cached` are (name, bytes, scores). `others` cost no bytes, and are lines."""

    def paint(axes: Axes, names: Names) -> None:
        for i, (name, scores) in enumerate(others):
            line = axes.axhline(scores.mean, color=GREY, linestyle=("--", ":", "-.")[i % 3], linewidth=1.5)
            line.set_gid(f"line-{i}")
            names[f"line-{i}"] = f"{name}: {spread(scores)} %"
            axes.annotate(plot_text(name[:40]), (1, scores.mean), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          fontsize=9)  # fmt: skip
        for i, (name, size, scores) in enumerate(cached):
            text = f"{name}: {spread(scores)} %, {size:,.0f} bytes"
            _paint_point(axes, names, f"point-{i}", (size, scores), COLOURS[0], text)
            if len(cached) <= MAX_LABELS:
                _write_name(axes, name, (size, scores.mean), _is_right(size, [size for _, size, _ in cached]))
        _log_x(axes, "bytes of a clip·view's maps", "top-1, %")

    return draw(caption, paint, note=f"The pointer on a point shows its name. {DEVIATION}")


def spread(scores: SeedScores) -> str:
    """A mean, and beside it the standard deviation of several seeds."""
    return f"{scores.mean:.2f}" + (f" ± {scores.std:.2f}" if len(scores.values) > 1 else "")


def _paint_point(axes: Axes, names: Names, gid: str, point: tuple[float, SeedScores], colour: str, text: str) -> None:
    x, scores = point
    if scores.std:
        axes.vlines(x, scores.mean - scores.std, scores.mean + scores.std, color=colour, linewidth=1.2)
    (drawn,) = axes.plot([x], [scores.mean], "o", color=colour, markersize=7)
    drawn.set_gid(gid)
    names[gid] = text


def _write_name(axes: Axes, name: str, place: tuple[float, float], left: bool) -> None:
    """Write a name beside its point, away from a rising front; `left`: where the chart's right edge is near."""
    offset, side = ((-7, 5), "right") if left else ((7, -12), "left")
    axes.annotate(
        plot_text(name[:40]), place, xytext=offset, ha=side, textcoords="offset points", fontsize=9, color=INK
    )


def _is_right(x: float, of: Sequence[float]) -> bool:
    """Whether x is in the right half of a logarithmic axis."""
    return x * x > min(of) * max(of)


def _log_x(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xscale="log", xlabel=x_label, ylabel=plot_text(y_label))
    axes.margins(x=0.15, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
