"""Curves of several runs over one another. Several seeds are a mean line, and a band from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from stages.report.parts import Chart
from stages.report.runs import Curve
from stages.report.svg import COLOURS, GREY, Names, draw
from stages.runtime.plots import plot_text

MAX_POINTS = 150  # of one line
WIDE_RANGE = 30  # a largest value of so many times the smallest is shown on a logarithmic axis
BAND = "A line of several seeds is their mean, and its band goes from the lowest to the highest."


@dataclass(frozen=True)
class Line:
    """`seeds`: a curve for each seed."""

    name: str
    seeds: tuple[Curve, ...]


def curve_chart(
    caption: str, lines: Sequence[Line], x_label: str, y_label: str, *, percent: bool = False
) -> Chart | None:
    """A chart of the lines that have points; None if none has. The first 8 are coloured, the others are grey.

    `percent`: the y axis is of percent. Otherwise it is logarithmic if the values span a wide range.
    """
    lines = [line for line in lines if any(len(curve.x) for curve in line.seeds)]
    if not lines:
        return None

    def paint(axes: Axes, names: Names) -> None:
        for i, line in reversed(list(enumerate(lines))):  # the first ones lie on top
            _paint_line(axes, line, i, names)
        axes.set(xlabel=x_label, ylabel=y_label)
        if not percent and _is_wide(lines):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="best")

    notes = [BAND] if any(len(line.seeds) > 1 for line in lines) else []
    if len(lines) > len(COLOURS):
        notes.append(f"{len(lines) - len(COLOURS)} of {len(lines)} lines are grey: the pointer on one shows its name.")
    return draw(caption, paint, note=" ".join(notes))


def _paint_line(axes: Axes, line: Line, i: int, names: Names) -> None:
    coloured = i < len(COLOURS)
    colour, width = (COLOURS[i], 1.8) if coloured else (GREY, 0.8)
    x, mean, low, high = _over_seeds(line.seeds)
    label = plot_text(line.name[:40]) if coloured else None
    marker = "o" if len(x) == 1 else None  # a single point is no line
    (drawn,) = axes.plot(x, mean, color=colour, linewidth=width, label=label, marker=marker, markersize=4)
    drawn.set_gid(f"line-{i}")
    last = mean[np.isfinite(mean)][-1:]
    names[f"line-{i}"] = f"{line.name}: {last[0]:.4g} at the end" if len(last) else line.name
    if len(line.seeds) > 1 and coloured:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _over_seeds(seeds: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, and the mean, the lowest and the highest value of the curves that have one there; thinned."""
    x = np.unique(np.concatenate([curve.x for curve in seeds]))
    values = np.full((len(seeds), len(x)), np.nan)
    for of_seed, curve in zip(values, seeds, strict=True):
        of_seed[np.searchsorted(x, curve.x)] = curve.y
    known = np.isfinite(values)
    count = known.sum(0)
    mean = np.where(count, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)
    low = np.where(count, np.where(known, values, math.inf).min(0), np.nan)
    high = np.where(count, np.where(known, values, -math.inf).max(0), np.nan)
    return tuple(_thinned(column) for column in (x, mean, low, high))


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most MAX_POINTS values, each the mean of neighbours."""
    if len(values) <= MAX_POINTS:
        return values
    parts = np.array_split(values, MAX_POINTS)
    return np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])


def _is_wide(lines: Sequence[Line]) -> bool:
    values = np.concatenate([curve.y for line in lines for curve in line.seeds])
    values = values[np.isfinite(values)]
    return bool(len(values)) and values.min() > 0 and values.max() > WIDE_RANGE * values.min()
