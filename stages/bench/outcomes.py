"""What came out of the study's arms: differences seed by seed, time to accuracy, a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Picture
from rich.table import Table

from stages.bench.arms import LABELS, Arm, plain, reference
from stages.bench.config import StudyConfig
from stages.runtime.log import console

RESOLVED = 0.5  # points: the least paired difference that counts, where the spread is smaller still
Curves = Sequence[Sequence[tuple[int, float]]]  # of each seed: (step, validation top-1)


@dataclass(frozen=True)
class Outcome:
    """An arm's students on the test split, one a seed."""

    arm: Arm
    top1: tuple[float, ...]  # percent, by seed
    curves: tuple[tuple[tuple[int, float], ...], ...]  # of each: (step, validation top-1)
    bytes: float | None  # of a clip·view's feature maps on disk; None where there are none

    @property
    def mean(self) -> float:
        return float(np.mean(self.top1))

    @property
    def std(self) -> float:
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else 0.0


def paired(a: Outcome, b: Outcome) -> tuple[float, float]:
    """Mean difference a - b over the seeds that both have, and its standard error (0 with one seed)."""
    both = min(len(a.top1), len(b.top1))
    difference = np.subtract(a.top1[:both], b.top1[:both])
    error = np.std(difference, ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()), float(error)


def no_worse(a: Outcome, b: Outcome) -> bool:
    """Whether a loses at most twice the standard error of their difference, or what the study resolves."""
    difference, error = paired(a, b)
    return difference >= -max(RESOLVED, 2 * error)


def labels_of(found: dict[str, Outcome], arm: Arm) -> Outcome | None:
    """The labels-only arm of the same schedule."""
    name = LABELS.name if arm.schedule == 1 else f"{LABELS.name}, {arm.schedule:g} × the epochs"
    return found.get(name)


def steps_to(curves: Curves, labels: Curves) -> float | None:
    """Steps until the mean curve reaches the final mean accuracy of the labels-only arm, in shares of that arm's steps.

    Between two epochs the curve is taken as straight. None where it doesn't get there.
    """
    steps, mean = _mean_curve(curves)
    labels_steps, labels_mean = _mean_curve(labels)
    goal = labels_mean[-1]
    above = np.flatnonzero(mean >= goal)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(steps[0] / labels_steps[-1])
    share = (goal - mean[i - 1]) / (mean[i] - mean[i - 1])
    return float((steps[i - 1] + share * (steps[i] - steps[i - 1])) / labels_steps[-1])


def _mean_curve(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(curves, dtype=np.float64)  # [seeds, epochs, 2]
    return array[0, :, 0], array[:, :, 1].mean(0)


def print_table(found: Mapping[str, Outcome], config: StudyConfig, views: int, teachers: Mapping[str, float]) -> None:
    """A row an arm."""
    named = ", ".join(f"{name} {top1:.1f} %" for name, top1 in teachers.items())
    columns = (
        "arm",
        "seeds",
        "top-1 %",
        "minus in the loop",
        "minus plain",
        "bytes a clip·view",
        "steps to labels' end",
    )
    table = Table(*columns, title=f"fidelity: {config.epochs} epochs, V = {views}; teachers: {named}",
                  caption="plain: the same in float16, or from the videos in place of a pack")  # fmt: skip
    for name, o in found.items():
        to, goal = found.get(reference(o.arm).name) if o.arm.teacher else None, labels_of(found, o.arm)
        steps = None if goal is None or goal is o else steps_to(o.curves, goal.curves)
        cells = [
            _minus(o, to),
            _minus(o, found.get(plain(o.arm) or "")),
            "" if o.bytes is None else f"{o.bytes:,.0f}",
        ]
        seeds, top1 = str(len(o.top1)), f"{o.mean:.2f} ± {o.std:.2f}"
        table.add_row(name, seeds, top1, *cells, "" if steps is None else f"{steps:.2f}")
    console.print(table)


def _minus(a: Outcome, b: Outcome | None) -> str:
    if b is None or b is a:
        return ""
    mean, error = paired(a, b)
    return f"{mean:+.2f} ± {error:.2f}"


def draw(path: Path, found: Mapping[str, Outcome]) -> None:
    """Accuracy against the bytes of a clip·view, in the study's own schedule; labels alone as a line."""
    picture = Picture(figsize=(8, 5), layout="constrained")
    axes = picture.subplots()
    for name, o in found.items():
        if o.bytes is None or o.arm.schedule != 1:
            continue
        colour = {"wide": "tab:orange"}.get(o.arm.of, "tab:green" if "grid" in (o.arm.features or {}) else "tab:blue")
        axes.errorbar(o.bytes, o.mean, yerr=o.std, fmt="o", color=colour, capsize=2)
        axes.annotate(name, (o.bytes, o.mean), fontsize=7, xytext=(4, 4), textcoords="offset points")
    for name, style in ((LABELS.name, ":"), ("in the loop, features", "--")):
        if name in found:
            axes.axhline(found[name].mean, color="tab:gray", linestyle=style, label=name)
    axes.set(xscale="log", xlabel="bytes of a clip·view's maps on disk", ylabel="top-1 on the test split, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
