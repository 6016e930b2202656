"""The outcomes of the study's arms: differences seed by seed, steps to an accuracy, a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Picture
from rich.table import Table

from stages.bench.arms import LABELS, Arm, plain_arm, reference_arm
from stages.bench.config import StudyConfig
from stages.metrics.spread import SeedScores
from stages.runtime.terminal import console

RESOLVED = 0.5  # points: a smaller paired difference doesn't count, even if its standard error is small
Curves = Sequence[Sequence[tuple[int, float]]]  # for each seed: (step, validation top-1)


@dataclass(frozen=True)
class Outcome:
    """The results of an arm's students, one student for each seed."""

    arm: Arm
    top1: SeedScores  # on the test split
    curves: tuple[tuple[tuple[int, float], ...], ...]  # for each seed: (step, validation top-1)
    bytes: float | None  # of a clip·view's feature maps on disk; None without a cache


def paired_difference(a: Outcome, b: Outcome) -> tuple[float, float]:
    """Mean difference a - b over the seeds that both have, and its standard error (0 with one seed)."""
    common = min(len(a.top1.values), len(b.top1.values))
    return mean_and_error(np.subtract(a.top1.values[:common], b.top1.values[:common]))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some values, and its standard error (0 for one)."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(error)


def no_worse(a: Outcome, b: Outcome) -> bool:
    """Whether a is worse than b by at most RESOLVED or twice the standard error of their difference."""
    difference, error = paired_difference(a, b)
    return difference >= -max(RESOLVED, 2 * error)


def labels_arm(outcomes: dict[str, Outcome], arm: Arm) -> Outcome | None:
    """The outcome of the labels-only arm with the schedule of `arm`."""
    name = LABELS.name if arm.schedule == 1 else f"{LABELS.name}, {arm.schedule:g} × the epochs"
    return outcomes.get(name)


def steps_to(curves: Curves, labels: Curves) -> float | None:
    """The steps until the mean curve reaches the final mean accuracy of the labels-only arm, as a share of that arm's steps.

    The curve is interpolated linearly between epochs. None if it never reaches that accuracy.
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


def print_table(
    outcomes: Mapping[str, Outcome], config: StudyConfig, views: int, teachers: Mapping[str, float]
) -> None:
    """A table with a row for each arm."""
    teacher_text = ", ".join(f"{name} {top1:.1f} %" for name, top1 in teachers.items())
    columns = (
        "arm",
        "seeds",
        "top-1 %",
        "minus in the loop",
        "minus plain",
        "bytes a clip·view",
        "share of steps to equal labels alone",
    )
    table = Table(*columns, title=f"fidelity: {config.epochs} epochs, V = {views}; teachers: {teacher_text}",
                  caption="plain: the same maps in float16, or videos in place of a pack")  # fmt: skip
    for name, o in outcomes.items():
        reference = outcomes.get(reference_arm(o.arm).name) if o.arm.teacher else None
        goal = labels_arm(outcomes, o.arm)
        steps = None if goal is None or goal is o else steps_to(o.curves, goal.curves)
        cells = [
            _difference_text(o, reference),
            _difference_text(o, outcomes.get(plain_arm(o.arm) or "")),
            "" if o.bytes is None else f"{o.bytes:,.0f}",
        ]
        seeds, top1 = str(len(o.top1.values)), f"{o.top1.mean:.2f} ± {o.top1.std:.2f}"
        table.add_row(name, seeds, top1, *cells, "" if steps is None else f"{steps:.2f}")
    console.print(table)


def _difference_text(a: Outcome, b: Outcome | None) -> str:
    if b is None or b is a:
        return ""
    mean, error = paired_difference(a, b)
    return f"{mean:+.2f} ± {error:.2f}"


def draw(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Plot accuracy over the bytes of a clip·view, for arms with the study's epochs. Arms without a cache are lines."""
    picture = Picture(figsize=(8, 5), layout="constrained")
    axes = picture.subplots()
    for name, o in outcomes.items():
        if o.bytes is None or o.arm.schedule != 1:
            continue
        colour = {"wide": "tab:orange"}.get(o.arm.net, "tab:green" if "grid" in (o.arm.features or {}) else "tab:blue")
        axes.errorbar(o.bytes, o.top1.mean, yerr=o.top1.std, fmt="o", color=colour, capsize=2)
        axes.annotate(name, (o.bytes, o.top1.mean), fontsize=7, xytext=(4, 4), textcoords="offset points")
    for name, style in ((LABELS.name, ":"), ("in the loop, features", "--")):
        if name in outcomes:
            axes.axhline(outcomes[name].top1.mean, color="tab:gray", linestyle=style, label=name)
    axes.set(xscale="log", xlabel="bytes of a clip·view's maps on disk", ylabel="top-1 on the test split, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
