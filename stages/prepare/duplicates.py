"""Clips that are the same video: twice in a data set, or in two that should share none. Told, never taken out."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.shards.dataset import Dataset, Row
from stages.shards.index import write_lines


def duplicates(data: Dataset) -> list[dict[str, Any]]:
    """Lines of report.jsonl: each clip that is an earlier one's video, and the same part of it."""
    hashes, places = _hashes(data)
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    first: dict[tuple, tuple[str, int, Row]] = {}
    lines = []
    for content, place in _rows(data, places[counts[inverse] > 1]):
        if content in first:
            lines.append(_line({"kind": "duplicate"}, data, place, data, first[content]))
        first.setdefault(content, place)
    return lines


def overlaps(data: Dataset, other: Dataset, name: str) -> list[dict[str, Any]]:
    """Lines of report.jsonl: each clip that is a clip of `other`, which is called `name`, whatever their keys."""
    (hashes, places), (theirs, their_places) = _hashes(data), _hashes(other)
    there = dict(_rows(other, their_places[np.isin(theirs, hashes)][::-1]))  # reversed: the first of several stays
    return [
        _line({"kind": "overlap", "with": name}, data, place, other, there[content])
        for content, place in _rows(data, places[np.isin(hashes, theirs)])
        if content in there
    ]


def update_report(data: Dataset, report: Path, apart: Mapping[str, Dataset]) -> str:
    """Brings the overlaps with these data sets up to date in report.jsonl; sums up all that it tells."""
    try:
        before = [json.loads(line) for line in report.read_bytes().splitlines()]
    except FileNotFoundError:
        before = []
    lines = [line for line in before if line["kind"] != "overlap" or line["with"] not in apart]
    lines += [line for name, other in apart.items() for line in overlaps(data, other, name)]
    if lines != before:
        write_lines(report, lines)
    otherwise = sum(not line.get("same_labels", True) for line in lines)
    return count_kinds(lines) + (f"; {otherwise} of the same videos are labelled otherwise" if otherwise else "")


def count_kinds(lines: Sequence[Mapping[str, Any]]) -> str:
    """What lines of quarantine.jsonl or report.jsonl come to, such as "3 absent, 14 unlisted"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(line["kind"] for line in lines).items()))


def _hashes(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The first 64 bits of each readable row's sha256, [N] uint64, and where it is, [N, 2] shard and row."""
    hashes, places = [], []
    for s, entry in enumerate(data.shards):
        rows = [(int(row.sha256[:16], 16), (s, r)) for r, row in enumerate(data.rows(entry.name)) if row.error is None]
        hashes.append(np.array([digest for digest, _ in rows], np.uint64))
        places.append(np.array([place for _, place in rows], np.int64).reshape(-1, 2))
    return np.concatenate(hashes), np.concatenate(places)


def _rows(data: Dataset, places: np.ndarray) -> Iterator[tuple[tuple, tuple[str, int, Row]]]:
    """(what makes a clip the same as another, (shard, row number, row)) of these places."""
    for s, r in places.tolist():
        row = data.rows(data.shards[s].name)[r]
        yield (row.sha256, row.start, row.frames), (data.shards[s].name, r, row)


def _line(
    kind: dict[str, str], data: Dataset, clip: tuple[str, int, Row], other: Dataset, twin: tuple[str, int, Row]
) -> dict[str, Any]:
    (shard, number, row), (their_shard, their_number, their_row) = clip, twin
    labels, theirs = _labels(data, row), _labels(other, their_row)
    where = f"{their_row.key} ({their_shard}, row {their_number}" + (f" of {kind['with']})" if "with" in kind else ")")
    reason = f"the same video as {where}"
    if labels != theirs:
        reason += f", labelled otherwise: {labels} here, {theirs} there"
    twin_place = {"shard": their_shard, "row": their_number, "key": their_row.key}
    return kind | {"shard": shard, "row": number, "key": row.key, "same_as": twin_place,
                   "same_labels": labels == theirs, "reason": reason}  # fmt: skip


def _labels(data: Dataset, row: Row) -> list[str]:
    return sorted(data.classes[label] for label in row.labels)
