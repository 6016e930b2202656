"""What a cache was paid with: noted line by line as it is spent, added to the manifest's notes when it is finalised.

So nothing that a killed run spent is forgotten, and what is computed again is paid again.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

NOTE = "paid"  # its name among the manifest's notes
COUNTED = "paid_ledgers"  # beside it: the names of the ledgers that its sum has, of which a kill may leave some behind
LEDGERS = ".paid-*.jsonl"  # at the root, one a rank and run; gone once the cache is finalised


@dataclass(frozen=True)
class TeacherTime:
    """`forward_seconds`: of the teacher alone, for `clip_views` answers that were to be stored. `seconds`: of stage one by
    the clock, with decoding, samples and recalibration; all of them summed over ranks, reruns and killed runs.
    """

    forward_seconds: float = 0.0
    clip_views: int = 0
    seconds: float = 0.0

    def __add__(self, other: "TeacherTime") -> "TeacherTime":
        return TeacherTime(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(TeacherTime)))

    def __str__(self) -> str:
        each = f", {1e3 * self.forward_seconds / self.clip_views:.2f} ms each" if self.clip_views else ""
        return (f"teacher time: {self.forward_seconds:.1f} s of forwards for {self.clip_views} clip·views{each}; "
                f"stage one took {self.seconds:.1f} s")  # fmt: skip


def open_time_log(path: str | Path, rank: int, began: float) -> Callable[[float, int], None]:
    """`spend(forward_seconds, clip_views)` for one rank: each call notes these, and the time since the last one.

    `began`: when this run did, by `time.perf_counter`. A line survives a kill (not a power cut: none is synced).
    """
    name = f"{rank}-{secrets.token_hex(8)}"  # which none had before: see COUNTED
    file, last = Path(path) / LEDGERS.replace("*", name), began

    def spend(forward_seconds: float, clip_views: int) -> None:
        nonlocal last
        now = time.perf_counter()
        with open(file, "a") as ledger:
            ledger.write(json.dumps(asdict(TeacherTime(forward_seconds, clip_views, now - last))) + "\n")
        last = now

    return spend


def teacher_time_of(path: str | Path, notes: Mapping[str, Any]) -> TeacherTime | None:
    """All that was paid for the cache so far, by its manifest's notes and the ledgers beside it; None: not known."""
    spent = [TeacherTime(**notes[NOTE])] if NOTE in notes else []
    for file in sorted(Path(path).glob(LEDGERS)):
        if file.name in notes.get(COUNTED, ()):
            continue
        spent += [TeacherTime(**json.loads(line)) for line in file.read_text().splitlines() if line.endswith("}")]
    return sum(spent, TeacherTime()) if spent else None


def with_teacher_time(path: str | Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes with the sum of all ledgers, and with their names: once these are written, none counts again."""
    paid, ledgers = teacher_time_of(path, notes), sorted(file.name for file in Path(path).glob(LEDGERS))
    return {**notes, NOTE: asdict(paid), COUNTED: ledgers} if ledgers and paid else dict(notes)


def close_time_logs(path: str | Path) -> None:
    """Remove them, once the manifest has their sum and their names."""
    for file in Path(path).glob(LEDGERS):
        file.unlink(missing_ok=True)
