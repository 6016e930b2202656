"""Stage 0: annotated videos -> tar shards in WebDataset's form, an index, and a report of what could not be read.

For shards that exist already it makes the index alone. To continue a killed run, run it again: each shard is written
whole and then noted, and index.json, which finishes the data set, is written last. The files of this folder:

    source.py            what the source is; all that decides the output's bytes
      folders.py, csv_list.py             the user's own videos: class folders, or a CSV
      publishers.py, annotation_files.py  published annotations
      frame_folders.py                    rawframes: folders of pictures
      clips.py, clip_list.py              a clip; all clips of a source
      path_index.py                       from a listed name to a file
      existing_shards.py                  the labels in existing tars
    plan.py              the shards to be made, and the classes
    make_shards.py       packs a tar, or indexes an existing one; encode_frames.py makes a video from pictures
    workers.py, probe_videos.py, check.py  worker processes, which check each video; how thoroughly
    recheck.py           checks a finished data set again
    output_folder.py     the lock, the arguments and the notes of the output; duplicates.py: videos that occur twice
"""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.check import Check, choose_check
from stages.prepare.duplicates import count_kinds, duplicates, update_report
from stages.prepare.make_shards import Shard
from stages.prepare.output_folder import (
    ARGUMENTS,
    QUARANTINE,
    WORK,
    Note,
    check_output,
    disk_errors,
    locked_output,
    read_note,
    write_note,
)
from stages.prepare.plan import Plan, check_disk, make_plan
from stages.prepare.progress import say, video_progress
from stages.prepare.source import AnnotationOptions, Source, published_name, read_source
from stages.prepare.workers import Workers
from stages.remote.url_path import Location, UrlPath, location
from stages.shards.classes import is_data_set, read_classes
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import INDEX, make_index, write_index, write_lines, write_rows
from stages.video.decode import RULES

REPORT = "report.jsonl"  # what is in the data set, but odd


def prepare(
    source: Path | str,
    output: Path,
    *,
    annotations: Path | None = None,
    videos: Path | None = None,
    split: str | None = None,
    with_offset: bool = False,
    frame_template: str | None = None,
    fps: float | None = None,
    classes: Location | Sequence[str] | None = None,
    limit: int | None = None,
    disjoint_from: Sequence[Location] = (),
    clips_per_shard: int = 1000,
    max_shard_bytes: int = 1_000_000_000,
    seed: int = 0,
    workers: int | None = None,
    check: Check | None = None,
    dry_run: bool = False,
) -> Dataset | None:
    """Make a data set in `output`, continue an unfinished one, or open a finished one.

    `source` is one of: a folder of class folders of videos; a folder of videos without classes (unlabelled); a CSV
    `path,label[,label...]` with paths relative to it; a folder of tar shards, nested or not, which are indexed at their
    place (`output` may be the same folder); a name of publishers.NAMES, with the published file `annotations` and the
    folder `videos`. `annotations` with a folder as the source: a CSV of the videos in that folder.
    `split`: which split, if the file holds several. `with_offset`, `frame_template`, `fps`: see `list_frame_folders`.
    `classes`: see `read_classes`. `limit`: take only that many clips, the first in the order of a hash.
    A shard is full at `clips_per_shard` clips or `max_shard_bytes` of video. `seed` spreads the clips over the shards.
    `disjoint_from`: data sets that should share no clip with this one; the data set `classes` is also one.
    `workers`: processes that decode (None: one per core; 0: this process alone). `check`: decode some frames of each video
    ("quick") or every frame ("full", which finds damage anywhere); None: see `choose_check`. `dry_run`: say what would be
    done, write nothing, return None.

    What can't be decoded, doesn't exist or isn't listed goes to quarantine.jsonl with its reason. These clips stay and
    are reported in report.jsonl: clips that are twice in the data set or in a data set that should share none; parts
    that end early; videos in another folder than the list's, found by name. Raises ReskdError for bad annotations,
    classes and tars (before any work), for an output that is in use or made from anything else, for a full disk, and if
    no clip is readable.
    """
    source, output, order = Path(source), Path(output), read_classes(classes)
    annotated = AnnotationOptions(_path(annotations), _path(videos), split, with_offset, frame_template, fps)
    if source.exists() and published_name(source, annotated):
        say(f"{source}: taken for the format of the annotations, not for the folder {source}.")
    options = {"clips_per_shard": clips_per_shard, "max_shard_bytes": max_shard_bytes, "seed": seed, "limit": limit}
    disjoint = _disjoint_data_sets(output, classes, disjoint_from)
    found = read_source(source, output, annotated, options, order)
    count = (os.cpu_count() or 1) if workers is None else workers
    with disk_errors(output), Workers(min(count, max(len(found.clip_list.clips), len(found.tars)))) as pool:
        check_output(output, found.arguments, among_tars=bool(found.tars))
        if (output / INDEX).exists():
            data = open_dataset(output)
            data.check_files()
            say(f"{output} was finished before: {len(data.shards)} shards. Nothing to do.")
        else:
            plan = make_plan(found, source, output, pool, order, options)
            if dry_run:
                return _describe(plan, found, output)
            with locked_output(output, found.arguments, among_tars=bool(found.tars)):
                chosen, why = choose_check(check, found, source, output / WORK, pool)
                say(f"Check: {chosen} ({why}).")
                data = _make_data_set(plan, found, output, chosen)
        if dry_run:
            return None
        if summary := update_report(data, output / REPORT, disjoint):
            say(f"{output / REPORT} lists clips that are in the data set, but odd: {summary}.")
        shutil.rmtree(output / WORK, ignore_errors=True)
    return data


def _disjoint_data_sets(
    output: Path, classes: Location | Sequence[str] | None, disjoint_from: Sequence[Location]
) -> dict[str, Dataset]:
    """The data sets that should share no clip with the one in `output`, by their paths as given."""
    paths = [location(path) for path in disjoint_from]
    if isinstance(classes, (str, Path, UrlPath)) and is_data_set(location(classes)):
        paths.append(location(classes))
    return {str(path): open_dataset(path) for path in paths
            if isinstance(path, UrlPath) or path.resolve() != output.resolve()}  # fmt: skip


def _make_data_set(plan: Plan, found: Source, output: Path, check: Check) -> Dataset:
    """Make the unfinished shards, one after the other, and then the index."""
    notes = {name: read_note(output, name, output / found.base) for name in plan.make}
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


def _make_shard(output: Path, name: str, make: Callable, advance: Callable[[str | None], None]) -> Note:
    shard: Shard = make(advance)
    digest = write_rows(output, name, shard.rows) if shard.entry else ""
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


def _finish(plan: Plan, found: Source, output: Path, notes: dict[str, Note], check: Check) -> Dataset:
    """Write quarantine.jsonl, report.jsonl and last index.json. Raises ReskdError if no clip is readable."""
    excluded = found.clip_list.quarantine + [line for note in notes.values() for line in note.quarantine]
    write_lines(output / QUARANTINE, sorted(excluded, key=lambda line: line["path"]))
    shards = [(note.entry, note.rows_sha256) for note in notes.values() if note.entry]
    if all(note.clips == len(note.quarantine) for note in notes.values()):
        bad = [line for line in excluded if line["kind"] != "unlisted"]
        first = f" The first, {bad[0]['path']}: {bad[0]['reason']}" if bad else ""
        raise ReskdError(f"{output}: none of {len(bad)} clips is readable, see {QUARANTINE} in this folder.{first}")
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
    if not (output / ARGUMENTS).exists():
        raise ReskdError(
            f"{output}: it has been moved, deleted or unmounted while the shards were written. Run `prepare` again"
        )
    odd = found.clip_list.report + [line for note in notes.values() for line in note.report]
    write_lines(output / REPORT, odd + duplicates(Dataset(output, index)))
    write_index(output, index)
    _summarise(plan, output, list(notes.values()))
    if excluded:
        say(f"{output / QUARANTINE} says why these are not in the data set: {count_kinds(excluded)}.")
    return open_dataset(output)


def _summarise(plan: Plan, output: Path, notes: Sequence[Note]) -> None:
    clips, shards = (
        sum(note.clips - len(note.quarantine) for note in notes),
        sum(note.entry is not None for note in notes),
    )
    say(f"{output}: {clips} clips in {shards} shards, {len(plan.classes)} classes.")
    _say_forms(plan)
    if several := sum(note.several for note in notes):
        say(f"{several} clips have several labels.")
    if unlabelled := sum(note.unlabelled for note in notes):
        say(f"{unlabelled} clips have no label: they can be cached and distilled from.")
    if fallbacks := sum(note.fallbacks for note in notes):
        say(f"{fallbacks} clips are decoded by PyAV instead of decord.")


def _say_forms(plan: Plan) -> None:
    if plan.forms:
        names = ", ".join(plan.forms)
        say(
            f"Class names in two Unicode forms (NFC and NFD), which look the same, count as one class: {names}.",
        )


def _describe(plan: Plan, found: Source, output: Path) -> None:
    """Say what a run would do."""
    several = f", {plan.several} with several labels" if plan.several else ""
    labelled = "" if plan.labelled is None else f" ({plan.labelled} labelled{several})"
    clips = plan.clips - plan.without_video
    say(f"Dry run: {output} would have {clips} clips{labelled} of {len(plan.classes)} classes, "
                  f"{sum(plan.sizes.values()) / 1e9:.3f} GB more, in {len(plan.make)} shards.")  # fmt: skip
    _say_forms(plan)
    if plan.without_video:
        say(f"{plan.without_video} keys in the tars have no video. They will be quarantined.")
    if finished := sum(read_note(output, name, output / found.base) is not None for name in plan.make):
        say(f"{finished} of the shards are finished already.")
    if found.clip_list.quarantine:
        say(f"Not in the data set: {count_kinds(found.clip_list.quarantine)}. For example:")
        examples = {line["kind"]: line for line in reversed(found.clip_list.quarantine)}
        for kind in sorted(examples):
            say(f"  {kind}: {examples[kind]['path']}: {examples[kind]['reason']}")


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)
