"""Stage 0: annotated videos -> WebDataset shards, an index of them, and a report of what could not be read.

Or an index alone, for shards made elsewhere. A killed run is continued by running it again: each shard is written
whole and then noted; `index.json` comes last, and with it the data set is there.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cache.errors import ReskdError
from cache.manifest import check_shard_names
from stages.data.annotations import Clip, class_table, list_csv, list_files, list_videos, read_classes
from stages.data.claim import WORK, Note, claimed, disk_errors, read_note, refuse_other, write_note
from stages.data.decode import decoder_identity
from stages.data.foreign import choose_field, merge_surveys, survey_shard
from stages.data.index import INDEX, dump, write_index, write_rows, write_whole
from stages.data.ingest import Shard, index_shard, pack_shard, spread_clips
from stages.data.probing import Prober
from stages.data.shards import Dataset, open_dataset
from stages.data.tarscan import VIDEO_EXTENSIONS

FORMAT = 1  # of a data set's content: raised when the same source would give other bytes
QUARANTINE = "quarantine.jsonl"
MARGIN = 1.02  # tar headers and padding, beside the videos' bytes


@dataclass(frozen=True)
class Source:
    """What lies at a source: videos, or tars by relative name. `arguments` decide every byte of the output."""

    clips: list[Clip]
    tars: list[str]
    base: str  # the folder of the tars, relative to the output
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """`make[shard](advance)` makes a shard; `sizes` are the bytes that each will take up."""

    classes: tuple[str, ...]
    clips: int
    make: dict[str, Callable[[Callable[[str | None], None]], Shard]]
    sizes: dict[str, int]


def prepare(
    source: Path,
    output: Path,
    *,
    annotations: Path | None = None,
    classes: Path | Sequence[str] | None = None,
    clips_per_shard: int = 1000,
    max_shard_bytes: int = 1_000_000_000,
    seed: int = 0,
    workers: int | None = None,
) -> Dataset:
    """Makes a data set in `output`, or continues it, or opens it where it is finished.

    `source` is a folder of class folders of videos; a folder of videos without classes (unlabelled); a CSV
    `path,label[,label...]`, paths relative to it; or a folder of tar shards, nested or not, which are indexed where
    they lie (`output` may be the same folder). `annotations`: such a CSV, of the videos in the folder `source`.
    `classes`: names in the order of their numbers, a file with one a line, or a prepared data set. A shard is full
    at `clips_per_shard` clips or `max_shard_bytes` of video, whichever comes first; `seed` spreads the clips over
    the shards. `workers`: processes that decode (None: one a core; 0: this process alone).

    What can't be decoded goes to quarantine.jsonl with its reason, and the run goes on. Raises ReskdError for bad
    annotations, classes and tars (before any work), an output in use or made from anything else, a full disk, and
    where no clip at all is readable.
    """
    source, output, order = Path(source), Path(output), read_classes(classes)
    options = {"clips_per_shard": clips_per_shard, "max_shard_bytes": max_shard_bytes, "seed": seed}
    found = _look(source, output, Path(annotations) if annotations else None, options, order)
    workers = (os.cpu_count() or 1) if workers is None else workers
    console = Console(stderr=True)
    with disk_errors(output), Prober(min(workers, max(len(found.clips), len(found.tars)))) as prober:
        refuse_other(output, found.arguments, among_tars=bool(found.tars))
        if (output / INDEX).exists():
            data = open_dataset(output)
            data.check_files()
            console.print(f"{output} was finished before: {len(data.shards)} shards. Nothing to do.", soft_wrap=True)
        else:
            planner = _plan_index if found.tars else _plan_shards
            plan = planner(found, source, output, prober, order, options)  # refuses bad input, touches nothing
            with claimed(output, found.arguments, among_tars=bool(found.tars)):
                data = _work(plan, found, output, console)
    shutil.rmtree(output / WORK, ignore_errors=True)
    return data


def _look(source: Path, output: Path, annotations: Path | None, options: dict, order: Sequence[str] | None) -> Source:
    """Lists the source and decides what it is."""
    clips, tars, base = [], {}, "."
    if source.is_file() and annotations is None:
        clips, kind = list_csv(source, source.parent), "CSV"
    elif not source.is_dir():
        raise ReskdError(f"{source}: no such folder. Give a folder of videos or of tar shards, or a CSV")
    elif annotations is not None:
        clips, kind = list_csv(annotations, source), "CSV"
    else:
        files = list_files(source, output)
        clips, kind = list_videos(source, files), "folder of videos"
        tars = {p.relative_to(source).as_posix(): p.stat().st_size for p in files if p.suffix == ".tar"}
        if bool(clips) == bool(tars):
            what = f"both videos ({clips[0].name}) and tars ({next(iter(tars))})" if tars else "neither videos nor tars"
            raise ReskdError(f"{source}: {what} in it. Give a folder of either; known as videos: "
                             f"{', '.join(sorted(VIDEO_EXTENSIONS))}")  # fmt: skip
    listing = [[clip.name, clip.size, clip.labels] for clip in clips]
    if tars:
        check_shard_names(list(tars))
        listing, options, kind = sorted(tars.items()), {}, "tar shards"
        base = Path(os.path.relpath(source.resolve(), output.resolve())).as_posix()
    digest = hashlib.sha256(dump(listing)).hexdigest()
    arguments = {"format": FORMAT, "source": kind, "base": base, "items": len(listing), "listing": digest, **options,
                 "classes": list(order) if order else None, "decoder": decoder_identity()}  # fmt: skip
    return Source(clips, sorted(tars), base, arguments)


def _plan_shards(found: Source, source: Path, output: Path, prober: Prober, order, options: dict[str, int]) -> Plan:
    """Videos to be packed."""
    labels = {}
    for clip in found.clips:
        for label in clip.labels:
            labels.setdefault(label, clip.where)
    classes, table = class_table(labels, order, names=found.arguments["source"] == "folder of videos")
    shards = spread_clips(found.clips, seed=options["seed"], per_shard=options["clips_per_shard"],
                          max_bytes=options["max_shard_bytes"])  # fmt: skip
    make, sizes = {}, {}
    for i, clips in enumerate(shards):
        name = f"{i:06d}.tar"
        make[name] = partial(pack_shard, output / name, output / WORK / name, clips, table, prober)
        sizes[name] = sum(clip.size or 0 for _, clip in clips)
    return Plan(classes, len(found.clips), make, sizes)


def _plan_index(found: Source, source: Path, output: Path, prober: Prober, order, options: dict[str, int]) -> Plan:
    """Tars to be indexed: each is looked through, so that a bad one is told before hours of work."""
    tasks = (partial(survey_shard, source / name, order is not None) for name in found.tars)
    survey = merge_surveys(prober.map(tasks))
    field, labels = choose_field(survey)
    classes, table = class_table(labels, order, names=False)
    make = {name: partial(index_shard, source / name, name, field, table, prober) for name in found.tars}
    return Plan(classes, survey.clips, make, dict.fromkeys(found.tars, 0))


def _work(plan: Plan, found: Source, output: Path, console: Console) -> Dataset:
    """Makes what isn't finished, shard by shard, and then the index."""
    notes = {name: read_note(output, name, output / found.base) for name in plan.make}
    kept = [note for note in notes.values() if note]
    needed, free = MARGIN * sum(plan.sizes[n] for n in notes if not notes[n]), shutil.disk_usage(output).free
    if needed > free:
        raise ReskdError(f"{output}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} free. Make room and run again, or "
                         "choose another output")  # fmt: skip
    if kept:
        console.print(f"Continuing: {len(kept)} of {len(notes)} shards were finished before.", soft_wrap=True)
    columns = (TextColumn("prepare"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
               TextColumn("{task.fields[bad]} unreadable"))  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=plan.clips - sum(note.clips for note in kept), bad=0)

        def advance(error: str | None) -> None:
            progress.update(bar, advance=1, bad=progress.tasks[bar].fields["bad"] + (error is not None))

        for name in notes:
            if notes[name] is None:
                notes[name] = _make(output, name, plan.make[name], advance)
    return _finish(plan, found, output, notes, console)


def _make(output: Path, name: str, make: Callable, advance: Callable[[str | None], None]) -> Note:
    shard: Shard = make(advance)
    digest = write_rows(output, name, shard.rows) if shard.entry else ""
    note = Note(
        entry=shard.entry,
        rows_sha256=digest,
        clips=len(shard.rows) + sum("row" not in line for line in shard.quarantine),
        unlabelled=sum(not row["labels"] for row in shard.rows),
        fallbacks=sum(row["fallback"] is not None for row in shard.rows),
        errors={str(i): row["error"] for i, row in enumerate(shard.rows) if row["error"]},
        quarantine=shard.quarantine,
    )
    write_note(output, name, note)
    return note


def _finish(plan: Plan, found: Source, output: Path, notes: dict[str, Note], console: Console) -> Dataset:
    quarantine = sorted((line for note in notes.values() for line in note.quarantine), key=lambda line: line["path"])
    write_whole(output / QUARANTINE, b"".join(dump(line) for line in quarantine))
    shards = [(note.entry, note.rows_sha256) for note in notes.values() if note.entry]
    readable = sum(note.clips for note in notes.values()) - len(quarantine)
    if readable == 0:
        raise ReskdError(f"{output}: none of {len(quarantine)} clips is readable, see {QUARANTINE} in it. The first, "
                         f"{quarantine[0]['path']}: {quarantine[0]['reason']}")  # fmt: skip
    write_index(
        output,
        classes=plan.classes,
        decoder=found.arguments["decoder"],
        base=found.base,
        shards=shards,
        quarantine={name: note.errors for name, note in notes.items() if note.errors},
    )
    lines = [f"{output}: {readable} clips in {len(shards)} shards, {len(plan.classes)} classes."]
    if unlabelled := sum(note.unlabelled for note in notes.values()):
        lines.append(f"{unlabelled} clips have no label: they can be cached and distilled from.")
    if fallbacks := sum(note.fallbacks for note in notes.values()):
        lines.append(f"{fallbacks} clips are decoded by PyAV instead of decord.")
    if quarantine:
        lines.append(f"{len(quarantine)} of {plan.clips} clips could not be read: {output / QUARANTINE} says why.")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
    return open_dataset(output)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} clips/s")
