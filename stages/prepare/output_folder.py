"""The output folder of `prepare`: whose it is, and what of it is finished."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import ShardEntry
from cache.store import write_atomically
from stages.runtime.lock import locked
from stages.shards.index import INDEX, dump, rows_path

ARGUMENTS = "prepare.json"  # what the folder is made from; kept, so that a rerun with anything else is refused
WORK = ".prepare"  # the lock, notes of finished shards, tars being written; gone once the data set is finished


@dataclass(frozen=True)
class Note:
    """A finished shard. `entry` is None where no clip of it was readable, and no tar written."""

    entry: ShardEntry | None
    rows_sha256: str
    clips: int  # looked at: rows, and clips that became none
    unlabelled: int
    fallbacks: int  # rows that the preferred decoder failed on
    several: int = 0  # rows of several labels
    errors: dict[str, str] = field(default_factory=dict)  # row -> reason
    quarantine: list[dict[str, Any]] = field(default_factory=list)  # lines of quarantine.jsonl
    report: list[dict[str, Any]] = field(default_factory=list)  # lines of report.jsonl


def refuse_other(output: Path, arguments: Mapping[str, Any], *, among_tars: bool) -> None:
    """Raises ReskdError for a folder made from other arguments, or holding anything that isn't `prepare`'s.

    `among_tars`: an index may lie in the folder of its tars, whatever else is there.
    """
    file = output / ARGUMENTS
    if output.exists() and not output.is_dir():
        raise ReskdError(f"{output}: a file. Choose a folder as output")
    if not file.exists():
        names = sorted(p.name for p in output.iterdir() if p.name != WORK) if output.exists() else []
        strange = next((name for name in names if name == INDEX or not among_tars), None)
        if strange is not None and not strange.startswith(f".{ARGUMENTS}."):
            raise ReskdError(f"{output}: in use, it holds {strange}. Choose an empty or new folder as output")
        return
    try:
        stored = dict(json.loads(file.read_bytes()))
    except ValueError as error:
        raise ReskdError(f"{file}: damaged ({error}). Choose another output, or delete {output}") from error
    names = [name for name in {**stored, **arguments} if stored.get(name) != arguments.get(name)]
    if names:
        lines = [f"{name}: {_short(stored.get(name))} there, {_short(arguments.get(name))} now"
                 for name in names if name != "listing"]  # fmt: skip
        if "listing" in names:  # two digests would say nothing
            lines.append("listing: other videos, sizes or labels than before")
        raise ReskdError(f"{output}: prepared from something else ({'; '.join(lines)}). Choose another output, or "
                         "delete this one")  # fmt: skip


@contextmanager
def claimed(output: Path, arguments: Mapping[str, Any], *, among_tars: bool) -> Iterator[None]:
    """Holds the folder alone. The lock goes with the process, however that ends."""
    with locked(output, output / WORK / "lock"):
        refuse_other(output, arguments, among_tars=among_tars)  # somebody may have been quicker
        if not (output / ARGUMENTS).exists():
            write_atomically(output / ARGUMENTS, dump(arguments))
        yield


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or output
        raise ReskdError(f"{where}: can't be written ({error.strerror or error}). Make room or mend the permissions, "
                         "and run `prepare` again: it continues; or choose another output") from error  # fmt: skip


def write_note(output: Path, shard: str, note: Note) -> None:
    write_atomically(_note_path(output, shard), dump(asdict(note)))


def read_note(output: Path, shard: str, base: Path) -> Note | None:
    """The note of a shard, if it was finished and its files are still those that were written."""
    path = _note_path(output, shard)
    if not path.exists():
        return None
    note = json.loads(path.read_bytes())
    note["entry"] = entry = ShardEntry(**note["entry"]) if note["entry"] else None
    if entry:
        rows, tar = rows_path(output, shard), base / shard
        if not rows.exists() or hashlib.sha256(rows.read_bytes()).hexdigest() != note["rows_sha256"]:
            return None
        if not tar.exists() or tar.stat().st_size != entry.bytes:
            return None
    return Note(**note)


def _note_path(output: Path, shard: str) -> Path:
    return output / WORK / "notes" / f"{shard}.json"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
