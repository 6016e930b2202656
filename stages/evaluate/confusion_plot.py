"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from stages.runtime.plots import plot_text

GAP = 3  # points between the names and the picture
MAX_NAMED, MAX_WRITTEN = 60, 15  # the picture shows names for at most 60 classes, and shares for at most 15


def plot_confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix, `counts` [K,K] (rows: true classes, columns: answers), in percent of each class's clips.

    Names are shown for up to 60 classes, shares for up to 15. A class without clips is a gray row.
    """
    clips, names = counts.sum(1, keepdims=True), [plot_text(name[:32]) for name in classes]
    shares = np.ma.masked_invalid(np.where(clips, 100 * counts / np.maximum(clips, 1), np.nan))
    named, size = len(names) <= MAX_NAMED, 9 if len(names) <= 30 else 7
    cells, room = min(12, 2.2 + 0.22 * len(names)) if named else 10, room_for(names if named else (), size)
    figure = Figure(figsize=(room + cells + 1.6, room + cells))
    axes = figure.subplots()
    place(axes, room)
    # The square root makes rare confusions visible beside a strong diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_facecolor("lightgray")
    label_axes(axes, names if named else (), size)
    if len(names) <= MAX_WRITTEN:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 40 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, shrink=0.8, label="% of the class's clips")
    figure.savefig(path, dpi=130)


def room_for(names: Sequence[str], size: float) -> float:
    """Inches for names of `size` points beside or below axes, and for what stands beside the names.

    A letter takes 0.64 of its size, on average at most, and one of East Asia twice as much. matplotlib's own layouts measure
    each name several times, which takes up to half of the drawing.
    """
    letters = max((sum(1 + (east_asian_width(c) in "WF") for c in name) for name in names), default=6)
    return 0.64 * size * letters / 72 + 0.55


def label_axes(axes: Axes, names: Sequence[str], size: float) -> None:
    """Write the names beside the rows and below the columns; without names, the axes count the classes.

    A tick is five things to draw, and its text is measured twice: here names are texts alone.
    """
    if not names:
        axes.set(xlabel="taken for, class number", ylabel="truth, class number")
        return
    axes.set(xticks=(), yticks=())
    inches = axes.figure.dpi_scale_trans
    below = axes.get_xaxis_transform() + ScaledTranslation(0, -GAP / 72, inches)
    beside = axes.get_yaxis_transform() + ScaledTranslation(-GAP / 72, 0, inches)
    for i, name in enumerate(names):
        axes.text(i, 0, name, transform=below, fontsize=size, rotation=90, ha="center", va="top")
        axes.text(0, i, name, transform=beside, fontsize=size, ha="right", va="center")
    pad = 72 * (room_for(names, size) - 0.55) + 2 * GAP
    axes.set_xlabel("taken for", labelpad=pad)
    axes.set_ylabel("truth", labelpad=pad)


def place(axes: Axes, room: float) -> None:
    """Leave `room` inches at the left and below."""
    width, height = axes.figure.get_size_inches()
    axes.figure.subplots_adjust(left=room / width, bottom=room / height, right=1 - 0.15 / width, top=1 - 0.15 / height)
