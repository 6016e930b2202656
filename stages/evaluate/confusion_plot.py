"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from stages.runtime.plots import plot_text

MAX_NAMED, MAX_WRITTEN = 60, 15  # the picture shows names for at most 60 classes, and shares for at most 15


def plot_confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix, `counts` [K,K] (rows: true classes, columns: answers), in percent of each class's clips.

    Names are shown for up to 60 classes, shares for up to 15. A class without clips is a gray row.
    """
    clips, names = counts.sum(1, keepdims=True), [plot_text(name[:32]) for name in classes]
    shares = np.ma.masked_invalid(np.where(clips, 100 * counts / np.maximum(clips, 1), np.nan))
    side = min(14, 3.5 + 0.22 * len(names)) if len(names) <= MAX_NAMED else 11
    figure = Figure(figsize=(side + 1.2, side))
    axes = figure.subplots()
    # The square root makes rare confusions visible beside a strong diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_facecolor("lightgray")
    axes.set(xlabel="taken for", ylabel="truth")
    if len(names) > MAX_NAMED:
        axes.set(xlabel="taken for, class number", ylabel="truth, class number")
    else:
        size = 9 if len(names) <= 30 else 7
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= MAX_WRITTEN:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 40 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, shrink=0.8, label="% of the class's clips")
    figure.savefig(path, dpi=130, bbox_inches="tight")
