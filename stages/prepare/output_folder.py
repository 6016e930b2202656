"""What an output of `prepare` is made from, its lock, and notes of its finished shards."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import ShardEntry
from cache.json_file import read_json
from cache.store import write_atomically
from stages.prepare.output import ARGUMENTS, NOTES, WORK, Output, folder_of
from stages.remote.probe import check_conditional_puts
from stages.remote.url_path import Location
from stages.runtime.lock import locked
from stages.shards.index import INDEX, dump, rows_path
from stages.video.decode import RULES

SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class Note:
    """A finished shard. `entry` is None if none of its clips was readable; then there is no tar."""

    entry: ShardEntry | None
    rows_sha256: str
    clips: int  # that were read: the rows, and the unreadable clips that have no row
    unlabelled: int
    fallbacks: int  # rows that the preferred decoder failed on
    several: int = 0  # rows with several labels
    errors: dict[str, str] = field(default_factory=dict)  # row -> reason
    quarantine: list[dict[str, Any]] = field(default_factory=list)  # lines of quarantine.jsonl
    report: list[dict[str, Any]] = field(default_factory=list)  # lines of report.jsonl
    rules: int = 1  # by which its videos were probed


def check_output(output: Output, arguments: Mapping[str, Any], *, among_tars: bool) -> None:
    """Raises ReskdError if the folder was made from other arguments, or holds files that `prepare` didn't write.

    `among_tars`: only tars are indexed, and the index may lie among them; then other files are allowed.
    """
    place, file = output.place, output.folder / ARGUMENTS
    if place.is_file() or (output.folder.exists() and not output.folder.is_dir()):
        raise ReskdError(f"{place}: a file. Choose a folder as the output")
    if not file.exists():
        foreign = next((name for name in output.names() if name == INDEX or not among_tars), None)
        if foreign is not None and not foreign.startswith(f".{ARGUMENTS}."):
            raise ReskdError(f"{place}: not empty, it holds {foreign}. Choose an empty or new folder as the output")
        return
    try:
        stored = dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise ReskdError(f"{file}: damaged ({error}). Choose another output, or delete {place}") from error
    names = [name for name in {**stored, **arguments} if stored.get(name) != arguments.get(name)]
    if names:
        # An absent argument equals null here, unlike in `cache.differences`, and long values are cut.
        lines = [f"{name}: the data set has {_short(stored.get(name))}, this run wants {_short(arguments.get(name))}"
                 for name in names if name != "listing"]  # fmt: skip
        if "listing" in names:  # the two digests would say nothing
            lines.append("listing: the clips, their sizes or their labels differ")
        raise ReskdError(f"{place}: made from another source or with other options ({'; '.join(lines)}). Choose "
                         "another output, or delete this one")  # fmt: skip


@contextmanager
def locked_output(output: Output, arguments: Mapping[str, Any], *, among_tars: bool) -> Iterator[None]:
    """Locks the folder for this process and writes its arguments. The lock ends with the process, even if it is killed.

    The folder of a URL is locked already. Raises ReskdError as `locked` and `check_output` do, Changed, and StoreError if a
    new output is in a store without conditional puts.
    """
    folder = output.folder
    with nullcontext() if output.mirror else locked(folder, folder / WORK / "lock"):
        check_output(output, arguments, among_tars=among_tars)  # another process may have written since the last check
        if not (folder / ARGUMENTS).exists():
            if output.mirror:
                check_conditional_puts(output.place)
            write_atomically(folder / ARGUMENTS, dump(arguments))
            output.put(folder / ARGUMENTS)
        yield


@contextmanager
def disk_errors(output: Location) -> Iterator[None]:
    """Turns an OSError into a ReskdError that says what to do. For a URL it names the folder that the files are made in."""
    try:
        yield
    except OSError as error:
        folder = folder_of(output)
        path = folder if error.filename in (None, str(output)) else error.filename
        remedy = "choose another output" if folder == output else "set TMPDIR to a folder of another disk"
        raise ReskdError(f"{path}: can't be written ({error.strerror or error}). Make room or correct the permissions, "
                         f"and run `prepare` again: it continues; or {remedy}") from error  # fmt: skip


def write_note(output: Output, shard: str, note: Note) -> None:
    write_atomically(_note_path(output, shard), dump(asdict(note)))
    output.put(_note_path(output, shard))


def read_note(output: Output, shard: str, tar_bytes: int | None) -> Note | None:
    """The note of a finished shard; None if it isn't finished, was made by older rules, or has other files than written.

    `tar_bytes`: the size of its tar; None: there is none.
    """
    path = _note_path(output, shard)
    if not path.exists():
        return None
    try:
        values = read_json(path)
        note = Note(**{**values, "entry": ShardEntry(**values["entry"]) if values["entry"] else None})
    except (ValueError, KeyError, TypeError):
        return None
    if note.rules != RULES:
        return None
    if entry := note.entry:
        rows = rows_path(output.folder, shard)
        if not rows.exists() or hashlib.sha256(rows.read_bytes()).hexdigest() != note.rows_sha256:
            return None
        if tar_bytes != entry.bytes:
            return None
    return note


def _note_path(output: Output, shard: str) -> Path:
    return output.folder / NOTES / f"{shard}.json"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
