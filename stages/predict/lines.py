"""The output: a JSON line for each video, and the same as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cache.store import naming
from stages.config.json_result import STDOUT
from stages.predict.scores import Prediction
from stages.predict.steps import Segment
from stages.predict.videos import RowVideo, Video
from stages.runtime.csv_text import csv_text

TOP = 5  # classes of a line
COLUMNS = ("video", "key", "labels", "start", "end", "label", "probability", "error")


def line_of(video: Video, found: Prediction, classes: Sequence[str], segments: list[Segment] | None) -> dict[str, Any]:
    """The JSON object of a video. `segments`: take the place of its label."""
    line: dict[str, Any] = {"video": video.name}
    if isinstance(video, RowVideo):
        line |= {"key": video.row.key, "labels": video.labels}
    if found.error is not None:
        return line | {"error": found.error}
    if segments is None:
        order = np.argsort(-found.probabilities, kind="stable")[:TOP].tolist()
        top = [{"label": classes[k], "probability": float(found.probabilities[k])} for k in order]
        line |= {**top[0], "top": top}
    else:
        line["segments"] = [
            {"start": s.start, "end": s.end, "label": classes[s.label], "probability": s.probability} for s in segments
        ]
    facts = found.facts
    line |= {"windows": facts.windows, "views": facts.views, "frames": facts.frames}
    if facts.seconds is not None:
        line["seconds"] = facts.seconds
    return line | {"decoder": found.decoder}


@contextmanager
def open_output(output: Path, table: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that writes the line of a video into `output` (`-`: standard output), and its rows into the CSV.

    A line is written whole as soon as it is known, so a run that is killed leaves whole lines. In names that aren't UTF-8,
    each other byte is an escape such as \\udce9 (Python's surrogateescape), in the JSON and in the table.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_open(output))
        rows = None if table is None else stack.enter_context(_open(table))
        if rows is not None:
            _write(rows, table, csv_text([COLUMNS]))

        def write(line: dict[str, Any]) -> None:
            _write(file, output, (json.dumps(line, allow_nan=False) + "\n").encode())
            if rows is not None:
                _write(rows, table, csv_text(_table_rows(line)))

        yield write


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path == STDOUT:
        sys.stdout.flush()
        yield getattr(sys.stdout, "buffer", None) or sys.stdout
        return
    with open(path, "wb") as file:
        yield file


def _write(file: BinaryIO, path: Path, data: bytes) -> None:
    with naming(path):
        file.write(data)
        file.flush()


def _table_rows(line: dict[str, Any]) -> list[list[Any]]:
    """One row a video, or one for each of its segments; at least one."""
    common = [line["video"], line.get("key", ""), " | ".join(line.get("labels", ()))]
    if "error" in line:
        return [[*common, "", "", "", "", line["error"]]]
    parts = line.get("segments")
    if parts is None:
        return [[*common, 0, line.get("seconds", ""), line["label"], line["probability"], ""]]
    return [[*common, p["start"], p["end"], p["label"], p["probability"], ""] for p in parts] or [[*common] + [""] * 5]
