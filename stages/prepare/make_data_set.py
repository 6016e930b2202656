"""Makes a planned data set: the unfinished shards, one after the other, and then the index."""

from collections.abc import Callable
from functools import partial

from cache.errors import ReskdError
from stages.prepare.check import Check
from stages.prepare.duplicates import count_kinds, duplicates
from stages.prepare.make_shards import Shard
from stages.prepare.output import ARGUMENTS, QUARANTINE, REPORT, Output
from stages.prepare.output_folder import Note, read_note, write_note
from stages.prepare.plan import Plan, check_disk
from stages.prepare.progress import say, video_progress
from stages.prepare.source import Source
from stages.prepare.summary import summarise
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import INDEX, make_index, rows_path, write_index, write_lines, write_rows
from stages.video.decode import RULES


def make_data_set(plan: Plan, found: Source, output: Output, check: Check) -> Dataset:
    """Make the unfinished shards, one after the other, and then the index."""
    notes = {name: read_note(output, name, found.tars.get(name) or output.tar_bytes(name)) for name in plan.make}
    finished = [note for note in notes.values() if note]
    check_disk(plan, [name for name, note in notes.items() if not note], output)
    if finished:
        say(f"Continuing: {len(finished)} of {len(notes)} shards were finished before.")
    total = plan.clips - sum(note.clips for note in finished)
    with video_progress("prepare", total) as advance:
        for name in notes:
            if notes[name] is None:
                notes[name] = _make_shard(output, name, partial(plan.make[name], check == "full"), advance)
    return _finish(plan, found, output, notes, check)


def _make_shard(output: Output, name: str, make: Callable, advance: Callable[[str | None], None]) -> Note:
    shard: Shard = make(advance)
    digest = ""
    if shard.entry:
        if (output.folder / name).exists():
            output.put_tar(output.folder / name)
        digest = write_rows(output.folder, name, shard.rows)
        output.put(rows_path(output.folder, name))
    note = Note(
        entry=shard.entry,
        rows_sha256=digest,
        clips=len(shard.rows) + sum("row" not in line for line in shard.quarantine),
        unlabelled=sum(not row["labels"] for row in shard.rows),
        several=sum(len(row["labels"]) > 1 for row in shard.rows),
        fallbacks=sum(row["fallback"] is not None for row in shard.rows),
        errors={str(i): row["error"] for i, row in enumerate(shard.rows) if row["error"]},
        quarantine=shard.quarantine,
        report=shard.report,
        rules=RULES,
    )
    write_note(output, name, note)
    return note


def _finish(plan: Plan, found: Source, output: Output, notes: dict[str, Note], check: Check) -> Dataset:
    """Write quarantine.jsonl, report.jsonl and last index.json. Raises ReskdError if no clip is readable."""
    excluded = found.clip_list.quarantine + [line for note in notes.values() for line in note.quarantine]
    folder, place = output.folder, output.place
    write_lines(folder / QUARANTINE, sorted(excluded, key=lambda line: line["path"]))
    output.put(folder / QUARANTINE)
    shards = [(note.entry, note.rows_sha256) for note in notes.values() if note.entry]
    if all(note.clips == len(note.quarantine) for note in notes.values()):
        bad = [line for line in excluded if line["kind"] != "unlisted"]
        first = f" The first, {bad[0]['path']}: {bad[0]['reason']}" if bad else ""
        raise ReskdError(f"{place}: none of {len(bad)} clips is readable, see {QUARANTINE} in this folder.{first}")
    errors = {name: note.errors for name, note in notes.items() if note.errors}
    decoder = found.arguments["decoder"]
    index = make_index(
        classes=plan.classes,
        decoder=decoder,
        base=found.base,
        shards=shards,
        quarantine=errors,
        rules=RULES,
        check=check,
    )
    if not (folder / ARGUMENTS).exists():
        raise ReskdError(
            f"{place}: it has been moved, deleted or unmounted while the shards were written. Run `prepare` again"
        )
    odd = found.clip_list.report + [line for note in notes.values() for line in note.report]
    write_lines(folder / REPORT, odd + duplicates(Dataset(folder, index)))
    write_index(folder, index)
    output.put(folder / REPORT, folder / INDEX)
    summarise(plan, place, list(notes.values()))
    if excluded:
        say(f"{place / QUARANTINE} says why these are not in the data set: {count_kinds(excluded)}.")
    return open_dataset(place)
