"""The files of an evaluation as the report reads them: NAME.json, NAME.classes.csv, NAME.answers.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache.json_file import read_json, read_limited
from stages.evaluate.answers_file import Answer, read_answers

METRICS = ("top1", "top5", "mean_class", "map")
MAX_ANSWERS = 500_000  # that are read in all: more take minutes and GBs


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's metrics on a data set, in percent; `classes`: name -> "clips", "recall", "precision", "ap"."""

    name: str
    path: Path
    checkpoint: Path
    data: Path
    protocol: str
    average: str
    size: int
    gmacs: float  # of a view
    gflops: float  # of a video
    clips: int
    failed: int
    unlabelled: int
    metrics: Mapping[str, float]
    headline: str  # the metric to judge by: "top1" or "map"
    confused: tuple[tuple[str, str, int, float], ...]  # truth, taken for, clips, percent of the class's clips
    classes: Mapping[str, Mapping[str, float]]
    answers: tuple[Answer, ...]
    faults: tuple[str, ...]  # what of the files beside the JSON can't be read

    @property
    def score(self) -> float:
        return self.metrics[self.headline]

    @property
    def run_folder(self) -> Path:
        """The folder that the checkpoint lies in, resolved; if it isn't there, that of the JSON."""
        return (self.checkpoint if self.checkpoint.exists() else self.path).parent.resolve()

    @property
    def comparable(self) -> tuple[str, str, str]:
        """Evaluations with the same value saw the same clips in the same way."""
        return str(self.data), self.protocol, self.average


def read_evaluation(path: Path, name: str) -> Evaluation:
    """All but the answers, which `with_answers` adds.

    Raises OSError, ValueError, KeyError or TypeError if the JSON isn't of an evaluation."""
    values = read_json(path, nan=True)
    beside, faults = path.name.removesuffix(".json"), []
    tables, file = {}, path.with_name(f"{beside}.classes.csv")
    try:
        tables = _read_classes(file) if file.exists() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        faults.append(f"{file} can't be read ({error})")
    return Evaluation(
        name=name,
        path=path,
        checkpoint=Path(str(values["checkpoint"])),
        data=Path(str(values["data"])),
        protocol=str(values["protocol"]),
        average=str(values["average"]),
        size=int(values["size"]),
        gmacs=float(values["gmacs"]),
        gflops=float(values["gflops"]),
        clips=int(values["clips"]),
        failed=int(values["failed"]),
        unlabelled=int(values["unlabelled"]),
        metrics={metric: float(values[metric]) for metric in METRICS},
        headline="map" if values["headline"] == "map" else "top1",
        confused=tuple((str(p["truth"]), str(p["taken_for"]), int(p["clips"]), float(p["percent"]))
                       for p in values["confused"] or ()),
        classes=tables,
        answers=(),
        faults=tuple(faults),
    )  # fmt: skip


def with_answers(evaluations: Sequence[Evaluation], most: int = MAX_ANSWERS) -> list[Evaluation]:
    """The evaluations in their order, with the answers of those that have a file of them.

    At most `most` answers in all: first those of the largest nets, which may be teachers, then those of the best ones.
    """
    largest = {evaluation.data: evaluation for evaluation in sorted(evaluations, key=lambda e: e.gmacs)}
    order = sorted(evaluations, key=lambda e: (largest[e.data] is not e, -e.score))
    added = {}
    for evaluation in order:
        most -= evaluation.clips
        added[id(evaluation)] = _with_its_answers(evaluation, most >= 0)
    return [added[id(evaluation)] for evaluation in evaluations]


def _with_its_answers(evaluation: Evaluation, read: bool) -> Evaluation:
    file = evaluation.path.with_name(f"{evaluation.path.name.removesuffix('.json')}.answers.csv")
    if not file.exists():
        return evaluation
    fault = f"{file} is left out: the others have {MAX_ANSWERS:,} answers already"
    try:
        answers = read_answers(file) if read else ()
        if _fits(answers, evaluation):
            return replace(evaluation, answers=answers)
        if read:
            fault = f"{file} is of another evaluation than the JSON beside it: left out"
    except (OSError, ValueError) as error:
        fault = f"{file} can't be read ({error})"
    return replace(evaluation, faults=(*evaluation.faults, fault))


def _fits(answers: tuple[Answer, ...], evaluation: Evaluation) -> bool:
    """Whether the answers are those that the evaluation's metrics are of."""
    right = 100 * sum(answer.right for answer in answers) / max(1, len(answers))
    return len(answers) == evaluation.clips and math.isclose(right, evaluation.metrics["top1"], abs_tol=1e-6)


def _read_classes(file: Path) -> dict[str, dict[str, float]]:
    """name -> column -> value; NaN: undefined."""
    lines = csv.DictReader(io.StringIO(read_limited(file).decode(), newline=""))
    return {
        line["class"]: {column: float(line[column] or "nan") for column in ("clips", "recall", "precision", "ap")}
        for line in lines
    }


def confusion_counts(evaluation: Evaluation) -> tuple[np.ndarray, list[str]] | None:
    """The confusion matrix [K,K] of the answers (rows: true classes, columns: answers) and its classes; None if it can't be
    had: no answers, or clips with several labels."""
    names = list(evaluation.classes) or sorted({name for a in evaluation.answers for name in (a.truth, a.answer)})
    place = {name: i for i, name in enumerate(names)}
    if not evaluation.answers or any(a.truth not in place or a.answer not in place for a in evaluation.answers):
        return None
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, tuple(zip(*((place[a.truth], place[a.answer]) for a in evaluation.answers), strict=True)), 1)
    return counts, names
