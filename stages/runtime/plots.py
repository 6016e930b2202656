"""Pictures that people look at before they read a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from cache.reader import CacheReader
from cache.view import BLOCK, View
from stages.shards.dataset import Dataset
from stages.video.decode import decode_frames
from stages.video.render import render

matplotlib.use("Agg")
NAMED, WRITTEN = 60, 15  # most classes whose names, and whose shares, a confusion matrix has room for
COLOURS = {"baseline": "tab:gray", "distilled": "tab:blue", "unlabelled": "tab:green"}


def learning_curves(path: Path, runs: Mapping[str, Sequence[dict]], teacher: Sequence[dict]) -> None:
    """Validation top-1 over epochs of each run ("KIND SEED" -> rows of its metrics.jsonl), under the teacher's last."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    labelled = set()
    for name, rows in runs.items():
        kind = name.split()[0]
        points = [(row["epoch"], row["top1"]) for row in rows if row["kind"] == "val"]
        label = None if kind in labelled else kind
        axes.plot(*zip(*points, strict=True), color=COLOURS[kind], label=label, alpha=0.8)
        labelled.add(kind)
    plateau = [row["top1"] for row in teacher if row["kind"] == "val"][-1]
    axes.axhline(plateau, color="tab:red", linestyle="--", label="teacher, at its end")
    axes.set(xlabel="epoch", ylabel="validation top-1, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


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


def contact_sheet(path: Path, data: Dataset, cache: Path, student_size: int, clips: int = 4) -> None:
    """What the teacher saw and what the student sees: stored view 0 of some usable clips, frame by frame."""
    reader = CacheReader(cache, ("logits",))
    teacher_size, classes = reader.manifest.identity.teacher["size"], reader.manifest.identity.classes
    found = [(e.name, int(r)) for e, rows in zip(data.shards, data.usable_rows(), strict=True) for r in rows][:clips]
    time = reader.manifest.identity.policy.num_frames
    figure = Figure(figsize=(1.5 * 2 * time + 1, 1.9 * len(found)), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.93), hspace=0.12)  # room for what is written
    grid = figure.subplots(len(found), 2 * time, squeeze=False)
    for line, (shard, r) in zip(grid, found, strict=True):
        block, i, row = reader.block(shard, 0, r // BLOCK), r % BLOCK, data.rows(shard)[r]
        view = block.view_of(i)
        pictures, _ = decode_frames(data.read(shard, r), row.start + view.frames, row.decoder)
        shown = [*render(pictures, view, teacher_size), *render(pictures, view, student_size)]
        for axes, picture in zip(line, shown, strict=True):
            axes.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
            axes.set_axis_off()
        truth = classes[row.labels[0]] if row.labels else "unlabelled"
        guess = classes[int(block.logits[i].argmax())]
        line[0].set_title(f"{truth}, teacher says {guess}", fontsize=8, loc="left").set_in_layout(False)
    for place, who in (
        (0, f"what the teacher saw: {teacher_size} px"),
        (time, f"what the student sees: {student_size} px"),
    ):
        grid[-1][place].text(0, -0.08, who, transform=grid[-1][place].transAxes, va="top", fontsize=9).set_in_layout(
            False
        )
    figure.savefig(path, dpi=130)


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


def confusion_matrix(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """What each class's clips were taken for, in percent of them: counts [K,K], row the truth, column the answer.

    Up to 60 classes are named, and up to 15 have their shares written in; a class without clips is a gray row.
    """
    clips, names = counts.sum(1, keepdims=True), [name[:32].replace("$", r"\$") for name in classes]
    shares = np.ma.masked_invalid(np.where(clips, 100 * counts / np.maximum(clips, 1), np.nan))
    side = min(14, 3.5 + 0.22 * len(names)) if len(names) <= NAMED else 11
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    # The root makes rare confusions visible beside a strong diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_facecolor("lightgray")
    axes.set(xlabel="taken for", ylabel="truth")
    if len(names) > NAMED:
        axes.set(xlabel="taken for, class number", ylabel="truth, class number")
    else:
        size = 9 if len(names) <= 30 else 7
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= WRITTEN:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 40 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, shrink=0.8, label="% of the class's clips")
    figure.savefig(path, dpi=130)
