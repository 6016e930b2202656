"""The picture of a video: probabilities over time, and segments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stages.predict.steps import Segment, Steps
from stages.runtime.plots import plot_text

STRONGEST = 6  # classes that have a line


def plot_name(number: int, name: str) -> str:
    """The name of the picture of video `number`: the number keeps videos of one name apart."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem)[:80]
    return f"{number + 1:05d}-{stem}.png"


def plot_timeline(path: Path, title: str, steps: Steps, segments: Sequence[Segment], classes: Sequence[str]) -> None:
    """Write a PNG: the probabilities of the strongest classes over time, and below them a bar for each segment."""
    strongest = np.argsort(-steps.probabilities.max(0), kind="stable")[:STRONGEST].tolist()
    shown = strongest + sorted({s.label for s in segments} - {*strongest})
    colours = {label: f"C{i % 10}" for i, label in enumerate(shown)}
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    for label in strongest:
        values = np.append(steps.probabilities[:, label], steps.probabilities[-1, label])
        above.step(steps.borders, values, where="post", color=colours[label], label=plot_text(classes[label][:40]))
    above.set(ylabel="probability", ylim=(0, 1.02), title=plot_text(title[-100:]))
    above.grid(alpha=0.3)
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    places = [(s.start, s.end - s.start) for s in segments]
    below.broken_barh(places, (-0.4, 0.8), facecolors=[colours[s.label] for s in segments], edgecolors="white")
    for segment, (start, length) in zip(segments, places, strict=True):
        if length > steps.borders[-1] / 12:
            name = plot_text(classes[segment.label][:24])
            below.text(start + length / 2, 0, name, ha="center", va="center", fontsize=7, color="white", clip_on=True)
    below.set(yticks=[], xlabel="seconds", xlim=(steps.borders[0], steps.borders[-1]), ylabel="segments")
    with open(path, "wb") as file:  # matplotlib takes names in UTF-8 only
        figure.savefig(file, dpi=110, format="png")
