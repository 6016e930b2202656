"""A picture of the stored views of one clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cache.view import View
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
    """Views of one clip (shard, row), a line each, its frames as a net of `size` px sees them, under its title."""
    shard, r = clip
    row, time = data.rows(shard)[r], len(views[0].frames)
    pictures, _ = decode_frames(data.read(shard, r), row.start + np.concatenate([v.frames for v in views]), row.decoder)
    width, height = max(1.6 * time, 0.065 * max(map(len, [*titles, title])) + 0.3), 2.0 * len(views) + 0.4
    figure = Figure(figsize=(width, height))  # placed by hand: a layout engine widens the column that has the titles
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.15 / height, top=1 - 0.6 / height, wspace=0.05, hspace=0.25)
    grid = figure.subplots(len(views), time, squeeze=False)
    for number, (line, view, text) in enumerate(zip(grid, views, titles, strict=True)):
        shown = render(pictures[number * time : (number + 1) * time], view, size)
        for axes, picture, frame in zip(line, shown, view.frames, strict=True):
            axes.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
            axes.set_anchor("W")
            axes.set_axis_off()
            axes.text(0, -0.02, f"frame {frame}", transform=axes.transAxes, va="top", fontsize=6)
        line[0].set_title(text.replace("$", r"\$"), fontsize=8, loc="left")
    figure.text(0.01, 1 - 0.1 / height, title.replace("$", r"\$"), fontsize=9, va="top")
    figure.savefig(path, dpi=130)
