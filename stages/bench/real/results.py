"""The results of the study on real video: choices, paired differences, tables and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture
from rich.table import Table

from cache.store import write_atomically
from stages.bench.figures import Figure
from stages.bench.outcomes import mean_and_error, steps_to
from stages.bench.real.arms import (
    LABELS,
    UPPER,
    Arm,
    claim_arms,
    combined_arms,
    detail_arms,
    in_the_loop,
    labels_like,
    sized,
)
from stages.bench.real.config import RealConfig
from stages.bench.real.runs import CHOICE, StudentRun
from stages.runtime.terminal import console

LAST = 3  # a score for choices is the mean of the last third of the validations: one clip of 161 is 0.6 points

GAP_SIZE = 112  # px; the goal is for students of this size


@dataclass
class Results:
    """All that is trained so far. `students`: name of a run -> its outcome; `runs`: the same names -> the runs."""

    config: RealConfig
    nets: dict[tuple, dict] = field(default_factory=dict)  # (teacher, side) -> its top-1
    frozen: dict[tuple[str, int], float] = field(default_factory=dict)  # (net, px) -> top-1 of a linear probe
    caches: dict[str, dict] = field(default_factory=dict)
    students: dict[str, dict] = field(default_factory=dict)
    runs: dict[str, StudentRun] = field(default_factory=dict)

    def add(self, runs: Sequence[StudentRun], outcomes: Sequence[Mapping[str, Any]]) -> None:
        self.students |= {run.name: dict(outcome) for run, outcome in zip(runs, outcomes, strict=True)}
        self.runs |= {run.name: run for run in runs}

    def choices(self, epochs: int) -> dict[str, tuple[Arm, float, float]]:
        """name of an arm -> (arm, its best rate, the score of that rate), of the students for choices of this length."""
        best: dict[str, tuple[Arm, float, float]] = {}
        for name, run in self.runs.items():
            score = _score(self.students[name]["curve"])
            if run.side == CHOICE and run.epochs == epochs and score > best.get(run.arm.name, (None, 0, -1))[2]:
                best[run.arm.name] = run.arm, run.rate, score
        return best

    def length_one(self) -> int:
        """The first length after which labels alone gain less than `gain` points."""
        scores = [self.choices(epochs)[LABELS.name][2] for epochs in self.config.lengths]
        gains = np.diff(scores)
        return next((n for n, gain in zip(self.config.lengths, gains, strict=False) if gain < self.config.gain),
                    self.config.lengths[-1])  # fmt: skip

    def rates(self, epochs: int) -> dict[str, float]:
        return {name: rate for name, (_, rate, _) in self.choices(epochs).items()}

    def best_arm(self, epochs: int) -> Arm:
        """The arm with the best score among those that read a cache."""
        cached = [c for c in self.choices(epochs).values() if c[0].teacher and not c[0].in_the_loop]
        return max(cached, key=lambda choice: choice[2])[0]

    def combinations(self, epochs: int) -> list[Arm]:
        """The best arm of features together with the best arm of logits, of one teacher."""
        tuned = [c for c in self.choices(epochs).values() if c[0].teacher == "tuned" and not c[0].in_the_loop]
        features = [c for c in tuned if any(name.startswith("feature") for name in c[0].losses)]
        answers = [c for c in tuned if any(name in c[0].losses for name in ("logit_kl", "dist"))]
        if not features or not answers:
            return []
        return combined_arms(*(max(part, key=lambda choice: choice[2])[0] for part in (features, answers)))

    def on_test(self, arm: Arm, epochs: int) -> dict[tuple[str, int], dict]:
        """(split, seed) -> outcome, of an arm's students on the splits."""
        return {(run.side, run.seed): self.students[name] for name, run in self.runs.items()
                if run.side != CHOICE and run.arm.name == arm.name and run.epochs == epochs}  # fmt: skip

    def difference(self, arm: Arm, other: Arm, epochs: int) -> tuple[float, float, int] | None:
        """Mean of arm - other over the splits and seeds that both have, its standard error (0 for one), and their number."""
        ours, theirs = self.on_test(arm, epochs), self.on_test(other, epochs)
        both = [ours[key]["top1"] - theirs[key]["top1"] for key in ours.keys() & theirs.keys()]
        return (*mean_and_error(both), len(both)) if both else None

    def write(self) -> None:
        """Write study.json: the nets, the caches, and each student with its arm."""
        rows = [{**asdict(self.runs[name]), **outcome} for name, outcome in self.students.items()]
        nets = {"-".join(map(str, key)): net for key, net in self.nets.items()}
        frozen = {f"{name} at {size} px": top1 for (name, size), top1 in self.frozen.items()}
        study = {
            "config": self.config.model_dump(mode="json"),
            "nets": nets,
            "frozen": frozen,
            "caches": self.caches,
            "students": rows,
        }
        write_atomically(self.config.output / "study.json", (json.dumps(study, indent=1) + "\n").encode())


def _score(curve: Sequence[Sequence[float]]) -> float:
    last = curve[-max(1, len(curve) // LAST) :]
    return float(np.mean([top1 for _, top1 in last]))


def claim_figures(results: Results, length: int, best: Arm) -> list[Figure]:
    """The figures that have goals, as far as their students are trained, and the accuracies."""
    figures = []
    for times, goal in ((1, 4.0), (3, 3.0)):
        for arm in claim_arms(best):
            if found := results.on_test(arm, times * length):
                values = [outcome["top1"] for outcome in found.values()]
                figures.append(
                    Figure(f"length {times}: {arm.name}", float(np.mean(values)), "%", float(np.std(values)))
                )
            if arm != LABELS and (difference := results.difference(arm, LABELS, times * length)):
                mean, error, number = difference
                ok = number > 1 and mean >= goal and mean > 2 * error if arm == best else None
                text = f">= {goal:g}, more than two standard errors" if arm == best else None
                figures.append(Figure(f"length {times}: {arm.name} - labels", mean, "points", error, text, ok))
    figures += _gap_figures(results, length, best)
    float16 = next(arm for arm in detail_arms(best) if arm.features == {"codec": "float16"})
    for name, ours, theirs in (("cached - in the loop", best, in_the_loop(best)), ("int4 - float16", best, float16)):
        if difference := results.difference(ours, theirs, length):
            mean, error, number = difference
            ok = number > 1 and mean >= -0.5 and error <= 0.7
            figures.append(Figure(name, mean, "points", error, ">= -0.5, standard error <= 0.7", ok))
    if (steps := _steps(results, best, length)) is not None:
        figures.append(Figure("steps to where labels end", steps, "of theirs", None, "<= 0.33", steps <= 1 / 3))
    return figures


def _gap_figures(results: Results, length: int, best: Arm) -> list[Figure]:
    """What of the gap between labels at low resolution and the same net at the teacher's size is closed, for each size."""
    figures = []
    for size in (None, *results.config.other_sizes):
        labels, arm = (a if size is None else sized(a, size) for a in (LABELS, best))
        gap, gain = results.difference(UPPER, labels, length), results.difference(arm, labels, length)
        if gap and gain and gap[0] > 0:
            pixels = size or results.config.size
            goal, ok = (">= 0.7", gain[0] >= 0.7 * gap[0]) if pixels == GAP_SIZE else (None, None)
            figures.append(
                Figure(f"{pixels} px: the same net at the teacher's size - labels", gap[0], "points", gap[1])
            )
            figures.append(
                Figure(f"{pixels} px: share of that gap that is closed", gain[0] / gap[0], "", None, goal, ok)
            )
    return figures


def _steps(results: Results, arm: Arm, epochs: int) -> float | None:
    """The share of the labels' steps after which the arm's mean curve is where theirs ends; None if it isn't."""
    ours, theirs = (_curves(results, a, epochs) for a in (arm, LABELS))
    return steps_to(ours, theirs) if ours and theirs else None


def _curves(results: Results, arm: Arm, epochs: int) -> list:
    return [outcome["curve"] for outcome in results.on_test(arm, epochs).values()]


def print_tables(results: Results, length: int, best: Arm) -> None:
    """The teachers, what frozen nets know, the choices on held-out sources, and every arm on the test splits."""
    table = Table("teacher", "side", "top-1 %", "on one frame")
    for (name, side), net in results.nets.items():
        table.add_row(name, side, f"{net['test']:.1f}", f"{net['one_frame']:.1f}")
    console.print(table)
    table = Table("frozen net", "a linear probe's held-out top-1 %")
    for (name, size), top1 in results.frozen.items():
        table.add_row(f"{name} at {size} px", f"{top1:.1f}")
    console.print(table)
    choices = results.choices(length)
    table = Table("arm", "best rate", "held-out top-1 %", "minus labels", title=f"choices, {length} epochs")
    for name, (_, rate, score) in sorted(choices.items(), key=lambda item: -item[1][2]):
        table.add_row(name, f"{rate:g}", f"{score:.1f}", f"{score - choices[LABELS.name][2]:+.1f}")
    console.print(table)
    table = Table("arm", "epochs", "students", "top-1 %", "minus its labels", title=f"test splits; chosen: {best.name}")
    arms = {(run.arm.name, run.epochs): run.arm for run in results.runs.values() if run.side != CHOICE}
    for (name, epochs), arm in arms.items():
        values = [outcome["top1"] for outcome in results.on_test(arm, epochs).values()]
        difference = results.difference(arm, labels_like(arm), epochs)
        text = "" if difference is None or arm == labels_like(arm) else f"{difference[0]:+.1f} ± {difference[1]:.1f}"
        table.add_row(name, str(epochs), str(len(values)), f"{np.mean(values):.1f}", text)
    console.print(table)


def draw(path: Path, results: Results, length: int, best: Arm) -> None:
    """Plot the mean accuracy of the claim's arms over epochs, and the choices' scores."""
    picture = Picture(figsize=(11, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    for arm in (*claim_arms(best), UPPER):
        for times, style in ((1, "-"), (3, "--")):
            if curves := _curves(results, arm, times * length):
                points = np.array(curves)
                label = f"{arm.name}, length {times}"
                left.plot(points[0, :, 0], points[:, :, 1].mean(0), style, label=label)
    left.set(xlabel="epoch", ylabel="top-1 on the test splits, %")
    left.grid(alpha=0.3)
    if left.lines:
        left.legend(fontsize=7, loc="lower right")
    choices = sorted(results.choices(length).items(), key=lambda item: item[1][2])
    right.barh([name for name, _ in choices], [score for _, (_, _, score) in choices])
    right.set(xlabel="top-1 on held-out sources, %")
    right.tick_params(axis="y", labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
