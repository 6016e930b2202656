"""`prepare --recheck`: probes the videos of a finished data set again, by today's rules, and renews its index in place."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import ShardEntry
from cache.json_file import read_json
from cache.store import sync, write_atomically
from stages.prepare.check import Check
from stages.prepare.existing_shards import shard_labels
from stages.prepare.make_shards import video_columns
from stages.prepare.output import QUARANTINE, WORK
from stages.prepare.output_folder import disk_errors
from stages.prepare.probe_videos import Part, crashed_probe, probe_task
from stages.prepare.progress import say, video_progress
from stages.prepare.workers import Workers
from stages.runtime.lock import locked
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import COLUMNS, INDEX, dump, make_index, rows_path, write_index, write_lines
from stages.video.decode import RULES
from stages.video.pyav_decode import is_mirrored

CHANGES = "recheck.jsonl"  # the rows that changed: path, key, and each value before and after
_COMPARED = ("decoder", "start", "frames", "width", "height", "error")
_SHOWN = 20  # changes


def recheck(path: Path, *, check: Check | None = None, workers: int | None = None) -> list[dict[str, Any]]:
    """Probe every video of the data set at `path` again. Returns the lines of recheck.jsonl: the rows that changed.

    `check`: as for `prepare`; None: as the data set was checked before. Shards that a killed run has finished are not
    probed again. The index is written last. Raises ReskdError for tars that aren't those of the index.
    """
    path = Path(path)
    open_dataset(path).check_files()  # before a lock is written into any other folder
    work = path / WORK / "recheck"
    count = (os.cpu_count() or 1) if workers is None else workers
    with disk_errors(path), locked(path, path / WORK / "lock"), Workers(count) as pool:
        lines = _put_in_place(path, work) if (work / INDEX).exists() else []  # a killed run had begun to
        data = open_dataset(path)
        if not lines or data.rules != RULES or check not in (None, data.check):
            check = check or data.check
            _probe_shards(data, check, pool, work)
            lines = _put_in_place(path, work)
    _tell(path, lines)
    return lines


def _probe_shards(data: Dataset, check: Check, pool: Workers, work: Path) -> None:
    """Write a note of every shard, and then the new index, into the folder `work`."""
    with video_progress("recheck", sum(entry.clips for entry in data.shards)) as advance:
        for entry in data.shards:
            if not _note(work, entry.name, check).exists():
                _probe_shard(data, entry, check, pool, work, advance)
    write_atomically(work / INDEX, dump(_new_index(data, check, work)))


def _note(work: Path, shard: str, check: Check) -> Path:
    return work / f"{shard}.{check}.{RULES}.json"


def _probe_shard(data: Dataset, entry: ShardEntry, check: Check, pool: Workers, work: Path, advance: Callable) -> None:
    """Write a shard's new rows, and the lines of its changes, into the folder `work`."""
    tar, file = data.base / entry.name, rows_path(data.path, entry.name)
    data.rows(entry.name)  # compares the file with the index
    columns = read_json(file)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    parts = _parts(tar, rows)
    tasks = [
        probe_task(tar, row["offset"], row["size"], part=part, every_frame=check == "full")
        for row, part in zip(rows, parts, strict=True)
    ]
    lines = []
    for number, (row, probe) in enumerate(zip(rows, pool.map(tasks, crashed_probe), strict=True)):
        if row["sha256"] and probe.sha256 and probe.sha256 != row["sha256"]:
            raise ReskdError(f"{tar}: row {number} ({row['key']}) has other bytes than the index. Put the indexed tar back, or "
                             "run `prepare` into a new folder")  # fmt: skip
        new = row | video_columns(probe)
        if _differs(row, new, tar):
            values = {name: [row[name], new[name]] for name in _COMPARED if row[name] != new[name]}
            lines.append(
                {"path": f"{entry.name}/{row['key']}.{row['ext']}", "shard": entry.name, "row": number, **values}
            )
        row |= video_columns(probe)
        advance(probe.error)
    note = {"rows": {name: [row[name] for row in rows] for name in COLUMNS}, "lines": lines}
    _note(work, entry.name, check).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(_note(work, entry.name, check), dump(note))


def _parts(tar: Path, rows: Sequence[dict[str, Any]]) -> list[Part | None]:
    """The part of its video that each row is, as the json beside the video says."""
    content, _, times = shard_labels(tar, False)
    part_of = {sample.key: t and Part(*t, sample.video.name) for sample, t in zip(content.samples, times, strict=True)}
    return [part_of.get(row["key"]) for row in rows]


def _differs(row: dict[str, Any], new: dict[str, Any], tar: Path) -> bool:
    """Whether a row's frames are others now. PyAV's two ways of decoding give the same ones; it lost mirrors before."""
    if any(row[name] != new[name] for name in _COMPARED if name != "decoder"):
        return True
    if row["decoder"][:4] != new["decoder"][:4]:
        return True
    if row["decoder"] != "pyav" or row["error"] is not None:
        return False
    with open(tar, "rb") as file:
        file.seek(row["offset"])
        return is_mirrored(file.read(row["size"]))


def _new_index(data: Dataset, check: Check, work: Path) -> dict[str, Any]:
    """The index with the new rows. A shard in which a row changed gets the number of today's rules."""
    shards, quarantine, changed = [], {}, {}
    for entry in data.shards:
        note = read_json(_note(work, entry.name, check))
        digest = _digest(note["rows"])
        rows = {line["row"]: RULES for line in note["lines"]}
        known = data.changed.get(entry.name, {})
        if rows and data.rules < RULES:
            changed[entry.name], entry = known | rows, replace(entry, rules=RULES)
        elif known:
            changed[entry.name] = known
        shards.append((entry, digest))
        errors = {i: error for i, error in enumerate(note["rows"]["error"]) if error is not None}
        if errors:
            quarantine[entry.name] = errors
    base = Path(os.path.relpath(data.base, data.path)).as_posix()
    index = make_index(classes=data.classes, decoder=data.decoder, base=base, shards=shards, quarantine=quarantine,
                       rules=RULES, check=check, changed=changed)  # fmt: skip
    return index | {"notes": {entry.name: _note(work, entry.name, check).name for entry in data.shards}}


def _put_in_place(path: Path, work: Path) -> list[dict[str, Any]]:
    """Replace the rows files and then the index by those in `work`. It can be repeated, if it is killed."""
    index = read_json(work / INDEX)
    lines = []
    for shard, file in index.pop("notes").items():
        note = read_json(work / file)
        write_atomically(rows_path(path, shard), dump(note["rows"]))
        lines += note["lines"]
    _renew_quarantine(path / QUARANTINE, [line for line in lines if "error" in line])
    write_lines(path / CHANGES, lines)
    write_index(path, index)
    (work / INDEX).unlink()  # before the notes that it names
    sync(work)
    shutil.rmtree(work)
    return lines


def _renew_quarantine(file: Path, changed: Sequence[dict[str, Any]]) -> None:
    """Take the clips whose error `changed` out of the file, and put in those that have one now."""
    old = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    places = {(line["shard"], line["row"]) for line in changed}
    new = [
        {
            "path": line["path"],
            "kind": "unreadable",
            "reason": line["error"][1],
            "shard": line["shard"],
            "row": line["row"],
        }
        for line in changed
        if line["error"][1] is not None
    ]
    write_lines(file, [line for line in old if (line.get("shard"), line.get("row")) not in places] + new)


def _digest(columns: dict[str, list]) -> str:
    return hashlib.sha256(dump(columns)).hexdigest()


def _tell(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    if not lines:
        say(f"{path}: every video is as it was.")
        return
    say(f"{path}: {len(lines)} videos changed; {path / CHANGES} lists them:")
    for line in lines[:_SHOWN]:
        values = ", ".join(f"{name} {line[name][0]!r} → {line[name][1]!r}" for name in _COMPARED if name in line)
        say(f"  {line['path']}: {values or 'mirrored now'}")
