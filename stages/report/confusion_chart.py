"""The confusion matrix as a chart. Its colours are transparent over the page's background, light or dark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stages.evaluate.confusion_plot import MAX_NAMED, MAX_WRITTEN, label_axes, place, room_for
from stages.metrics.accuracy import confused_pairs
from stages.report.parts import Chart
from stages.report.svg import Names, draw
from stages.runtime.plots import plot_text

MAX_HOVERED = 100  # cells whose names the pointer shows: the most confused ones
COLOUR = np.array([0.16, 0.47, 0.84])


def confusion_chart(caption: str, counts: np.ndarray, classes: Sequence[str]) -> Chart:
    """A confusion matrix, `counts` [K,K] (rows: true classes, columns: answers), in percent of each class's clips."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = [plot_text(name[:28]) for name in classes] if len(classes) <= MAX_NAMED else []
    size = 9 if len(texts) <= 30 else 7.5
    room = room_for(texts, size)

    def paint(axes: Axes, names: Names) -> None:
        pixels = np.concatenate([np.broadcast_to(COLOUR, (*counts.shape, 3)), np.sqrt(shares)[..., None]], axis=2)
        axes.imshow(pixels, interpolation="nearest")  # the square root makes rare confusions visible
        axes.grid(False)
        axes.spines[["top", "right"]].set_visible(True)
        axes.figure.set_layout_engine(None)
        place(axes, room)
        label_axes(axes, texts, size)
        if len(classes) <= MAX_WRITTEN:
            for truth, answer in zip(*np.nonzero(counts), strict=True):
                axes.text(answer, truth, f"{100 * shares[truth, answer]:.0f}", ha="center", va="center", fontsize=9)
        _name_cells(axes, names, counts, shares, classes)

    side = room + (min(8.0, 2.2 + 0.16 * len(classes)) if texts else 5.5)
    return draw(caption, paint, size=(side, side), note="Rows are true classes, columns are answers; a strong colour is a "
                "large share of the class's clips. The pointer on a cell shows its names.")  # fmt: skip


def _name_cells(axes: Axes, names: Names, counts: np.ndarray, shares: np.ndarray, classes: Sequence[str]) -> None:
    """Invisible rectangles over the most confused cells, with their names."""
    for i, (truth, answer) in enumerate(confused_pairs(counts, MAX_HOVERED)):
        cell = Rectangle((answer - 0.5, truth - 0.5), 1, 1, facecolor="white", alpha=0, gid=f"cell-{i}")
        axes.add_patch(cell)
        names[f"cell-{i}"] = (f"{classes[truth]}, taken for {classes[answer]}: {counts[truth, answer]} clips, "
                              f"{100 * shares[truth, answer]:.0f} %")  # fmt: skip
