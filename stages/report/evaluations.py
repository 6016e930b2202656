"""The files of an evaluation as the report reads them: NAME.json, NAME.classes.csv, NAME.answers.csv."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache.json_file import read_json, read_limited
from stages.evaluate.answers_file import Answer, read_answers
from stages.remote.url_path import Location, UrlPath, location, resolved

METRICS = ("top1", "top5", "mean_class", "map")
MAX_ANSWERS = 500_000  # that are read in all: more take minutes and GBs
MAX_CLASSES = 2_000  # of a confusion matrix: it grows with their square


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's metrics on a data set, in percent; `classes`: name -> "clips", "recall", "precision", "ap"."""

    name: str
    path: Location
    checkpoint: Location
    data: Location
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
    run_folder: Location | None  # that the checkpoint lies in, or lay in, resolved; None: not known

    @property
    def score(self) -> float:
        return self.metrics[self.headline]

    @property
    def comparable(self) -> tuple[str, str, str]:
        """Evaluations with the same value saw the same clips and views, at any size: one chart compares them."""
        return str(self.data), self.protocol, self.average


def read_evaluation(path: Location, name: str, runs: Collection[Location] = ()) -> Evaluation:
    """All but the answers, which `with_answers` adds. `runs`: the folders of the report's runs, resolved.

    Raises OSError, ValueError, KeyError or TypeError if the JSON isn't of an evaluation."""
    values = read_json(path, nan=True)
    beside, faults = path.name.removesuffix(".json"), []
    tables, file = {}, path.with_name(f"{beside}.classes.csv")
    try:
        tables = _read_classes(file) if file.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        faults.append(f"{file} can't be read ({error})")
    checkpoint = location(str(values["checkpoint"]))
    return Evaluation(
        name=name,
        path=path,
        checkpoint=checkpoint,
        data=location(str(values["data"])),
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
        run_folder=_run_folder(checkpoint, path, runs),
    )  # fmt: skip


def _run_folder(checkpoint: Location, path: Location, runs: Collection[Location]) -> Location | None:
    """The folder that the checkpoint of the evaluation `path` lies in, or lay in, resolved; None if it isn't known.

    If runs were moved, it is the JSON's folder, but only under the name of the checkpoint's folder: a teacher's JSON may
    lie in the folder of a student. A URL that isn't among the runs may be gone: it isn't asked.
    """
    folder, beside = checkpoint.parent, resolved(path.parent)
    if isinstance(checkpoint, UrlPath):
        return beside if folder.name == beside.name and folder not in runs else folder
    if os.path.exists(checkpoint) or (folder.name and os.path.isdir(folder)):
        return folder.resolve()
    return beside if folder.name == beside.name else None


def with_answers(evaluations: Sequence[Evaluation], most: int = MAX_ANSWERS) -> list[Evaluation]:
    """The evaluations in their order, with the answers of those that have a file of them.

    At most `most` answers in all: first those of the largest nets, which may be teachers, then those of the best ones.
    """
    largest = {evaluation.data: evaluation for evaluation in sorted(evaluations, key=lambda e: e.gmacs)}
    order = sorted(evaluations, key=lambda e: (largest[e.data] is not e, -e.score))
    added, left = {}, most
    for evaluation in order:
        added[id(evaluation)], lines = _with_its_answers(evaluation, left, most)
        left -= lines
    return [added[id(evaluation)] for evaluation in evaluations]


def _with_its_answers(evaluation: Evaluation, left: int, most: int) -> tuple[Evaluation, int]:
    """The evaluation, with answers if it has them, and how many of the `left` ones were read."""
    file, lines = evaluation.path.with_name(f"{evaluation.path.name.removesuffix('.json')}.answers.csv"), 0
    if not file.is_file():
        return evaluation, 0
    try:
        held = max(0, read_limited(file).count(b"\n") - 1)  # the first line names the columns
        if held > left:
            fault = f"{file} is left out: it has {held:,} answers, and of the {most:,} that are read in all {left:,} are left"
        else:
            lines = held
            answers = read_answers(file)
            if _fits(answers, evaluation):
                return replace(evaluation, answers=answers), lines
            fault = f"{file} is of another evaluation than the JSON beside it: left out"
    except (OSError, ValueError) as error:
        fault = f"{file} can't be read ({error})"
    return replace(evaluation, faults=(*evaluation.faults, fault)), lines


def _fits(answers: tuple[Answer, ...], evaluation: Evaluation) -> bool:
    """Whether the answers are those that the evaluation's metrics are of."""
    right = 100 * sum(answer.right for answer in answers) / max(1, len(answers))
    return len(answers) == evaluation.clips and math.isclose(right, evaluation.metrics["top1"], abs_tol=1e-6)


def _read_classes(file: Location) -> dict[str, dict[str, float]]:
    """name -> column -> value; NaN: undefined."""
    lines = csv.DictReader(io.StringIO(read_limited(file).decode(), newline=""))
    return {
        line["class"]: {column: float(line[column] or "nan") for column in ("clips", "recall", "precision", "ap")}
        for line in lines
    }


def class_names(evaluation: Evaluation) -> list[str]:
    """Those of NAME.classes.csv; without it, those that are in the answers."""
    return list(evaluation.classes) or sorted({name for a in evaluation.answers for name in (a.truth, a.answer)})


def confusion_counts(evaluation: Evaluation) -> tuple[np.ndarray, list[str]] | None:
    """The confusion matrix [K,K] of the answers (rows: true classes, columns: answers) and its classes; None if it can't be
    had: no answers, clips with several labels, or more than MAX_CLASSES classes."""
    names = class_names(evaluation)
    place = {name: i for i, name in enumerate(names)}
    if (
        not evaluation.answers
        or len(names) > MAX_CLASSES
        or any(a.truth not in place or a.answer not in place for a in evaluation.answers)
    ):
        return None
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, tuple(zip(*((place[a.truth], place[a.answer]) for a in evaluation.answers), strict=True)), 1)
    return counts, names
