"""A picture of the stored views of one clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cache.view import View
from stages.runtime.plots import plot_text
from stages.shards.dataset import Dataset
from stages.video.decode import decode_frames
from stages.video.render import render


def clip_sheet(
    path: Path,
    data: Dataset,
    clip: tuple[str, int],
    views: Sequence[View],
    titles: Sequence[str],
    title: str,
    size: int,
) -> None:
    """Draw the views of one clip (shard, row) into `path`: a line for each view, its frames rendered at `size` px."""
    shard, r = clip
    row, num_frames = data.rows(shard)[r], len(views[0].frames)
    pictures, _ = decode_frames(data.read(shard, r), row.start + np.concatenate([v.frames for v in views]), row.decoder)
    width, height = max(1.6 * num_frames, 0.065 * max(map(len, [*titles, title])) + 0.3), 2.0 * len(views) + 0.4
    figure = Figure(figsize=(width, height))  # placed by hand: a layout engine widens the column that has the titles
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.15 / height, top=1 - 0.6 / height, wspace=0.05, hspace=0.25)
    axes_grid = figure.subplots(len(views), num_frames, squeeze=False)
    for number, (axes_line, view, view_title) in enumerate(zip(axes_grid, views, titles, strict=True)):
        frames = render(pictures[number * num_frames : (number + 1) * num_frames], view, size)
        for axes, picture, frame in zip(axes_line, frames, view.frames, strict=True):
            axes.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
            axes.set_anchor("W")
            axes.set_axis_off()
            axes.text(0, -0.02, f"frame {frame}", transform=axes.transAxes, va="top", fontsize=6)
        axes_line[0].set_title(plot_text(view_title), fontsize=8, loc="left")
    figure.text(0.01, 1 - 0.1 / height, plot_text(title), fontsize=9, va="top")
    figure.savefig(path, dpi=130)
