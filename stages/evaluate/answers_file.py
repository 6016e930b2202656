"""NAME.answers.csv of an evaluation: the answer for each clip."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from cache.json_file import read_limited
from cache.store import write_atomically
from stages.metrics.accuracy import ScoredVideos
from stages.remote.url_path import Location
from stages.runtime.csv_text import csv_text
from stages.shards.dataset import Dataset

COLUMNS = ("shard", "key", "truth", "answer", "probability", "right")
BETWEEN_LABELS = " | "  # of a clip with several


@dataclass(frozen=True)
class Answer:
    """The best class for one clip. `truth`: its label, or its labels with BETWEEN_LABELS between them."""

    shard: str
    key: str
    truth: str
    answer: str
    probability: float  # of the answer, 0 to 1
    right: bool  # whether the answer is one of the labels


def write_answers(path: Path, scored: ScoredVideos, data: Dataset) -> None:
    """Write a line for each scored clip, in the data set's order. Class names that aren't UTF-8 are escaped."""
    lines = [COLUMNS]
    for (shard, row), best, probabilities, truth in zip(
        scored.videos.tolist(), scored.best[:, 0].tolist(), scored.probabilities, scored.truth, strict=True
    ):
        name = data.shards[shard].name
        labels = BETWEEN_LABELS.join(data.classes[label] for label in truth.nonzero()[0])
        key, right = data.rows(name)[row].key, int(truth[best])
        lines.append((name, key, labels, data.classes[best], f"{probabilities[best]:.4f}", right))
    write_atomically(path, csv_text(lines))


def read_answers(path: Location) -> tuple[Answer, ...]:
    """Raises OSError, and ValueError for a file that `write_answers` didn't write."""
    lines = csv.reader(io.StringIO(read_limited(path).decode(), newline=""))
    if tuple(next(lines, ())) != COLUMNS:
        raise ValueError(f"its first line isn't {','.join(COLUMNS)}")
    answers = []
    for line in lines:
        if len(line) != len(COLUMNS):
            raise ValueError(f"line {lines.line_num} has {len(line)} values, not {len(COLUMNS)}")
        shard, key, truth, answer, probability, right = line
        answers.append(Answer(shard, key, truth, answer, float(probability), right == "1"))
    return tuple(answers)
