"""Teacher time: how long the teacher ran for a cache. Logs record it during the work, the manifest's notes keep the sum.

A killed run has recorded its time too. What is computed twice counts twice.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.store import as_path

NOTE = "paid"  # the sum's key in the manifest's notes
_COUNTED_LOGS = "paid_ledgers"  # key of the names of the logs in that sum: a kill may prevent the removal of some
LOGS = ".paid-*.jsonl"  # in the root's folder, one log for each rank and run; removed when the cache is finalised


@dataclass(frozen=True)
class TeacherTime:
    """Times are summed over ranks, reruns and killed runs.

    `forward_seconds`: the teacher's forward passes alone, for `clip_views` clips times views. `seconds`: stage one by the
    clock, with decoding, samples and recalibration.
    """

    forward_seconds: float = 0.0
    clip_views: int = 0
    seconds: float = 0.0

    def __add__(self, other: "TeacherTime") -> "TeacherTime":
        return TeacherTime(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(TeacherTime)))

    def __str__(self) -> str:
        mean = f", {1e3 * self.forward_seconds / self.clip_views:.2f} ms each" if self.clip_views else ""
        return (f"teacher time: {self.forward_seconds:.1f} s of forwards for {self.clip_views} clip·views{mean}; "
                f"stage one took {self.seconds:.1f} s")  # fmt: skip


def open_time_log(path: str | Path, rank: int, began: float) -> Callable[[float, int], None]:
    """`record(forward_seconds, clip_views)` for one rank: each call appends a line, with the time since the last call.

    `began`: when this run began, by `time.perf_counter`. A line survives a kill, but not a power cut (no fsync).
    """
    name = f"{rank}-{secrets.token_hex(8)}"  # never used before: a name in _COUNTED_LOGS is not counted again
    file, last = Path(path) / LOGS.replace("*", name), began

    def record(forward_seconds: float, clip_views: int) -> None:
        nonlocal last
        now = time.perf_counter()
        with open(file, "a") as log:
            log.write(json.dumps(asdict(TeacherTime(forward_seconds, clip_views, now - last))) + "\n")
        last = now

    return record


def teacher_time_of(path: str | Path, notes: Mapping[str, Any]) -> TeacherTime | None:
    """The cache's teacher time so far, from the manifest's notes and the logs that they don't count yet; None: unknown."""
    times = [_read_time(path, notes[NOTE])] if NOTE in notes else []
    for file in _logs(as_path(path)):
        if file.name in notes.get(_COUNTED_LOGS, ()):
            continue
        lines = file.read_text().splitlines()
        times += [_read_time(file, json.loads(line)) for line in lines if line.endswith("}")]  # a kill may cut the last
    return sum(times, TeacherTime()) if times else None


def _logs(path: Path) -> list[Path]:
    if isinstance(path, Path):
        return sorted(path.glob(LOGS))
    return [file for file in path.iterdir() if fnmatchcase(file.name, LOGS)]


def _read_time(path: str | Path, values: Any) -> TeacherTime:
    try:
        time = TeacherTime(**values)
        return time + TeacherTime(0.0, 0, 0.0)  # adds numbers alone
    except TypeError as error:
        raise ReskdError(f"{path}: its teacher time is damaged ({error}): run cache-teacher again.") from error


def with_teacher_time(path: str | Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes with the sum of all logs and the logs' names. Once these are written, no log is counted again."""
    total, logs = teacher_time_of(path, notes), sorted(file.name for file in Path(path).glob(LOGS))
    return {**notes, NOTE: asdict(total), _COUNTED_LOGS: logs} if logs and total else dict(notes)


def close_time_logs(path: str | Path) -> None:
    """Remove the logs. The stored manifest must have their sum and their names already."""
    for file in Path(path).glob(LOGS):
        file.unlink(missing_ok=True)
