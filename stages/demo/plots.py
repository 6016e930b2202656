"""The demo's pictures: learning curves, and the views of the teacher and the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cache.reader import CacheReader
from cache.view import BLOCK
from stages.shards.dataset import Dataset
from stages.video.decode import decode_frames
from stages.video.render import render

COLOURS = {"baseline": "tab:gray", "distilled": "tab:blue", "unlabelled": "tab:green"}


def learning_curves(path: Path, runs: Mapping[str, Sequence[dict]], teacher: Sequence[dict]) -> None:
    """Plot the validation top-1 of each run ("KIND SEED" -> rows of metrics.jsonl) over epochs, and the teacher's last."""
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
    axes.axhline(plateau, color="tab:red", linestyle="--", label="teacher, last epoch")
    axes.set(xlabel="epoch", ylabel="validation top-1, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


def contact_sheet(path: Path, data: Dataset, cache: Path, student_size: int, clips: int = 4) -> None:
    """Draw the frames that the teacher and the student see: stored view 0 of the first usable clips."""
    reader = CacheReader(cache, ("logits",))
    teacher_size, classes = reader.manifest.identity.teacher["size"], reader.manifest.identity.classes
    shown = [(e.name, int(r)) for e, rows in zip(data.shards, data.usable_rows(), strict=True) for r in rows][:clips]
    time = reader.manifest.identity.policy.num_frames
    figure = Figure(figsize=(1.5 * 2 * time + 1, 1.9 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for line, (shard, r) in zip(grid, shown, strict=True):
        block, i, row = reader.block(shard, 0, r // BLOCK), r % BLOCK, data.rows(shard)[r]
        view = block.view_of(i)
        pictures, _ = decode_frames(data.read(shard, r), row.start + view.frames, row.decoder)
        for axes, size in zip(line, (teacher_size, student_size), strict=True):
            axes.imshow(_strip(render(pictures, view, size)), interpolation="nearest")
            axes.set_axis_off()
        truth = classes[row.labels[0]] if row.labels else "unlabelled"
        guess = classes[int(block.logits[i].argmax())]
        line[0].set_title(f"{truth}, teacher says {guess}", fontsize=9, loc="left")
    for axes, text in zip(
        grid[-1], (f"the teacher: {teacher_size} px", f"the student: {student_size} px"), strict=True
    ):
        axes.text(0, -0.05, text, transform=axes.transAxes, va="top", fontsize=10)
    figure.savefig(path, dpi=130)


def _strip(pictures: np.ndarray) -> np.ndarray:
    """Pictures [T,3,S,S] side by side, with white between them: [S,width,3]."""
    gap = max(1, pictures.shape[-1] // 16)
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (0, gap)), constant_values=255)
    return np.concatenate(np.moveaxis(padded, 1, -1), axis=1)[:, :-gap]
