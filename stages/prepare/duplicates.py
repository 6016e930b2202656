"""Clips that are the same video, in one data set or in two that should share none. They are reported, never removed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import ReskdError
from cache.json_file import parse_json, read_limited
from stages.shards.dataset import Dataset, Row
from stages.shards.index import write_lines

Place = tuple[str, int, Row]  # shard, row number, row


def duplicates(data: Dataset) -> list[dict[str, Any]]:
    """Lines of report.jsonl: each clip that is the same part of the same video as an earlier clip."""
    hashes, places = _content_hashes(data)
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    first: dict[tuple, Place] = {}
    lines = []
    for content, place in _rows_at(data, places[counts[inverse] > 1]):
        if content in first:
            lines.append(_report_line({"kind": "duplicate"}, data, place, data, first[content]))
        first.setdefault(content, place)
    return lines


def overlaps(data: Dataset, other: Dataset, name: str) -> list[dict[str, Any]]:
    """Lines of report.jsonl: each clip that is also in `other`, under any key. `name`: how lines call `other`."""
    (hashes, places), (other_hashes, other_places) = _content_hashes(data), _content_hashes(other)
    common = other_places[np.isin(other_hashes, hashes)]
    in_other = dict(_rows_at(other, common[::-1]))  # reversed, so that the first of several clips stays
    return [
        _report_line({"kind": "overlap", "with": name}, data, place, other, in_other[content])
        for content, place in _rows_at(data, places[np.isin(hashes, other_hashes)])
        if content in in_other
    ]


def update_report(data: Dataset, report: Path, disjoint: Mapping[str, Dataset]) -> str:
    """Writes the overlaps with the data sets `disjoint` (name -> data set) into report.jsonl, anew for each of them.

    Returns a summary of the whole file, empty for an empty file.
    """
    try:
        before = [parse_json(line) for line in read_limited(report).splitlines()]
        lines = [line for line in before if line["kind"] != "overlap" or line["with"] not in disjoint]
    except FileNotFoundError:
        before, lines = [], []
    except (ValueError, KeyError, TypeError) as error:
        raise ReskdError(f"{report}: damaged ({error!r}). Delete it, and run `prepare` again") from error
    lines += [line for name, other in disjoint.items() for line in overlaps(data, other, name)]
    if lines != before:
        write_lines(report, lines)
    differing = sum(not line.get("same_labels", True) for line in lines)
    return count_kinds(lines) + (f"; {differing} of the same videos have other labels" if differing else "")


def count_kinds(lines: Sequence[Mapping[str, Any]]) -> str:
    """How many lines of quarantine.jsonl or report.jsonl are of each kind, such as "3 absent, 14 unlisted"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(line["kind"] for line in lines).items()))


def _content_hashes(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """For each readable row: the first 64 bits of its sha256, uint64 [N]; its shard and row numbers, int64 [N, 2]."""
    hashes, places = [], []
    for s, entry in enumerate(data.shards):
        rows = [(int(row.sha256[:16], 16), (s, r)) for r, row in enumerate(data.rows(entry.name)) if row.error is None]
        hashes.append(np.array([digest for digest, _ in rows], np.uint64))
        places.append(np.array([place for _, place in rows], np.int64).reshape(-1, 2))
    return np.concatenate(hashes), np.concatenate(places)


def _rows_at(data: Dataset, places: np.ndarray) -> Iterator[tuple[tuple, Place]]:
    """(content, place) of each row at `places`, int64 [N, 2]. Clips with equal content are the same."""
    for s, r in places.tolist():
        row = data.rows(data.shards[s].name)[r]
        yield (row.sha256, row.start, row.frames), (data.shards[s].name, r, row)


def _report_line(
    kind: dict[str, str], data: Dataset, place: Place, other: Dataset, other_place: Place
) -> dict[str, Any]:
    """The line for a clip of `data` that is the same as a clip of `other`."""
    (shard, number, row), (other_shard, other_number, other_row) = place, other_place
    labels, other_labels = _label_names(data, row), _label_names(other, other_row)
    in_data_set = f" of {kind['with']}" if "with" in kind else ""
    reason = f"the same video as {other_row.key} ({other_shard}, row {other_number}{in_data_set})"
    if labels != other_labels:
        reason += f", with other labels: this clip has {labels}, the other has {other_labels}"
    same_as = {"shard": other_shard, "row": other_number, "key": other_row.key}
    return kind | {"shard": shard, "row": number, "key": row.key, "same_as": same_as,
                   "same_labels": labels == other_labels, "reason": reason}  # fmt: skip


def _label_names(data: Dataset, row: Row) -> list[str]:
    return sorted(data.classes[label] for label in row.labels)
