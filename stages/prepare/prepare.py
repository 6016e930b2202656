"""Stage 0: annotated videos -> WebDataset shards, an index of them, and a report of what could not be read.

Or an index alone, for shards made elsewhere. A killed run is continued by running it again: each shard is written
whole and then noted; `index.json` comes last, and with it the data set is there.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cache.errors import ReskdError
from stages.prepare.duplicates import count_kinds, duplicates, update_report
from stages.prepare.existing_shards import choose_field, merge_surveys, survey_shard
from stages.prepare.ingest import Shard, index_shard, pack_shard, spread_clips
from stages.prepare.output_folder import WORK, Note, claimed, disk_errors, read_note, refuse_other, write_note
from stages.prepare.probing import Prober
from stages.prepare.sources import Annotated, Source, look, published_name
from stages.shards.classes import class_table, read_classes
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import INDEX, make_index, write_index, write_lines, write_rows

QUARANTINE = "quarantine.jsonl"  # what is not in the data set, and why: path, kind, reason
REPORT = "report.jsonl"  # what is in it, and odd
MARGIN = 1.02  # tar headers and padding, beside the videos' bytes


@dataclass(frozen=True)
class Plan:
    """`make[shard](advance)` makes a shard; `sizes` are the bytes that each will take up."""

    classes: tuple[str, ...]
    clips: int
    make: dict[str, Callable[[Callable[[str | None], None]], Shard]]
    sizes: dict[str, int]
    labelled: int | None = None  # clips; None where only the tars know
    several: int = 0  # clips of several labels


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
    classes: Path | Sequence[str] | None = None,
    limit: int | None = None,
    disjoint_from: Sequence[Path] = (),
    clips_per_shard: int = 1000,
    max_shard_bytes: int = 1_000_000_000,
    seed: int = 0,
    workers: int | None = None,
    dry_run: bool = False,
) -> Dataset | None:
    """Makes a data set in `output`, or continues it, or opens it where it is finished.

    `source` is a folder of class folders of videos; a folder of videos without classes (unlabelled); a CSV
    `path,label[,label...]`, paths relative to it; a folder of tar shards, nested or not, which are indexed where
    they lie (`output` may be the same folder); or one of publishers.NAMES, with `annotations` as published and the
    folder `videos` (and `split`, where the file holds several; the next three for rawframes: see `list_frames`).
    `annotations` otherwise: such a CSV, of the videos in the folder `source`.
    `classes`: names in the order of their numbers, a file with one a line or {name: number}, a prepared data set or a teacher.
    `limit`: so many clips, the first in the order of the shards, which is that of a hash. A shard is full at
    `clips_per_shard` clips or `max_shard_bytes` of video, whichever comes first; `seed` spreads the clips over the
    shards. `disjoint_from`: data sets that should share no clip with this one (that of `classes` is one, too).
    `workers`: processes that decode (None: one a core; 0: this process alone). `dry_run`: says what would be done,
    writes nothing, returns None.

    What can't be decoded, isn't there or isn't listed goes to quarantine.jsonl with its reason; clips that are twice
    in the data set, or in a data set that should share none, parts that ended early, and videos that were found by
    their name alone, in another folder than the list's, stay in, and are told in report.jsonl. Raises ReskdError for bad
    annotations, classes and tars (before any work), an output in use or made from anything else, a full disk, and where
    no clip at all is readable.
    """
    source, output, order = Path(source), Path(output), read_classes(classes)
    annotated = Annotated(_path(annotations), _path(videos), split, with_offset, frame_template, fps)
    console = Console(stderr=True)
    if source.exists() and published_name(source, annotated):
        _say(console, f"{source}: taken for the format of the annotations, not for the {source} that is here.")
    options = {"clips_per_shard": clips_per_shard, "max_shard_bytes": max_shard_bytes, "seed": seed, "limit": limit}
    apart = _apart(output, classes, disjoint_from)
    found = look(source, output, annotated, options, order)
    workers = (os.cpu_count() or 1) if workers is None else workers
    with disk_errors(output), Prober(min(workers, max(len(found.listing.clips), len(found.tars)))) as prober:
        refuse_other(output, found.arguments, among_tars=bool(found.tars))
        if (output / INDEX).exists():
            data = open_dataset(output)
            data.check_files()
            _say(console, f"{output} was finished before: {len(data.shards)} shards. Nothing to do.")
        else:
            planner = _plan_index if found.tars else _plan_shards
            plan = planner(found, source, output, prober, order, options)  # refuses bad input, touches nothing
            if dry_run:
                return _describe(plan, found, output, console)
            with claimed(output, found.arguments, among_tars=bool(found.tars)):
                data = _work(plan, found, output, console)
        if dry_run:
            return None
        if odd := update_report(data, output / REPORT, apart):
            _say(console, f"{output / REPORT} tells of clips that are in it, and odd: {odd}.")
        shutil.rmtree(output / WORK, ignore_errors=True)
    return data


def _apart(output: Path, classes: Path | Sequence[str] | None, disjoint_from: Sequence[Path]) -> dict[str, Dataset]:
    """The data sets that should share no clip with that in `output`, by the names that were given."""
    paths = [Path(path) for path in disjoint_from]
    if isinstance(classes, (str, Path)) and Path(classes).is_dir():
        paths.append(Path(classes))
    return {str(path): open_dataset(path) for path in paths if path.resolve() != output.resolve()}


def _plan_shards(found: Source, source: Path, output: Path, prober: Prober, order, options: dict[str, int]) -> Plan:
    """Videos to be packed."""
    classes, table = class_table(found.listing.labels, order, names=found.listing.names)
    shards = spread_clips(found.listing.clips, seed=options["seed"], per_shard=options["clips_per_shard"],
                          max_bytes=options["max_shard_bytes"], limit=options["limit"])  # fmt: skip
    make, sizes = {}, {}
    for i, clips in enumerate(shards):
        name = f"{i:06d}.tar"
        make[name] = partial(pack_shard, output / name, output / WORK / name, clips, table, prober)
        sizes[name] = sum(clip.size or 0 for _, clip in clips)
    taken = [clip for clips in shards for _, clip in clips]
    labelled, several = (sum(len(clip.labels) > least for clip in taken) for least in (0, 1))
    return Plan(classes, len(taken), make, sizes, labelled, several)


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
        _say(console, f"Continuing: {len(kept)} of {len(notes)} shards were finished before.")
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
        several=sum(len(row["labels"]) > 1 for row in shard.rows),
        fallbacks=sum(row["fallback"] is not None for row in shard.rows),
        errors={str(i): row["error"] for i, row in enumerate(shard.rows) if row["error"]},
        quarantine=shard.quarantine,
        report=shard.report,
    )
    write_note(output, name, note)
    return note


def _finish(plan: Plan, found: Source, output: Path, notes: dict[str, Note], console: Console) -> Dataset:
    lost = found.listing.quarantine + [line for note in notes.values() for line in note.quarantine]
    write_lines(output / QUARANTINE, sorted(lost, key=lambda line: line["path"]))
    shards = [(note.entry, note.rows_sha256) for note in notes.values() if note.entry]
    bad = [line for line in lost if line["kind"] != "unlisted"]
    if all(note.clips == len(note.quarantine) for note in notes.values()):
        first = f" The first, {bad[0]['path']}: {bad[0]['reason']}" if bad else ""
        raise ReskdError(f"{output}: none of {len(bad)} clips is readable, see {QUARANTINE} in it.{first}")
    errors = {name: note.errors for name, note in notes.items() if note.errors}
    decoder = found.arguments["decoder"]
    index = make_index(classes=plan.classes, decoder=decoder, base=found.base, shards=shards, quarantine=errors)
    odd = found.listing.report + [line for note in notes.values() for line in note.report]
    write_lines(output / REPORT, odd + duplicates(Dataset(output, index)))
    write_index(output, index)
    clips = sum(note.clips - len(note.quarantine) for note in notes.values())
    _say(console, f"{output}: {clips} clips in {len(shards)} shards, {len(plan.classes)} classes.")
    if several := sum(note.several for note in notes.values()):
        _say(console, f"{several} clips have several labels.")
    if unlabelled := sum(note.unlabelled for note in notes.values()):
        _say(console, f"{unlabelled} clips have no label: they can be cached and distilled from.")
    if fallbacks := sum(note.fallbacks for note in notes.values()):
        _say(console, f"{fallbacks} clips are decoded by PyAV instead of decord.")
    if lost:
        _say(console, f"{output / QUARANTINE} says why these are not in it: {count_kinds(lost)}.")
    return open_dataset(output)


def _describe(plan: Plan, found: Source, output: Path, console: Console) -> None:
    """Says what would be done."""
    several = f", {plan.several} with several labels" if plan.several else ""
    labelled = "" if plan.labelled is None else f" ({plan.labelled} labelled{several})"
    _say(console, f"Dry run: {output} would have {plan.clips} clips{labelled} of {len(plan.classes)} classes, "
                  f"{sum(plan.sizes.values()) / 1e9:.3f} GB more, in {len(plan.make)} shards.")  # fmt: skip
    if done := sum(read_note(output, name, output / found.base) is not None for name in plan.make):
        _say(console, f"{done} of the shards are finished already.")
    if found.listing.quarantine:
        _say(console, f"Not in it: {count_kinds(found.listing.quarantine)}. For example:")
        examples = {line["kind"]: line for line in reversed(found.listing.quarantine)}
        for kind in sorted(examples):
            _say(console, f"  {kind}: {examples[kind]['path']}: {examples[kind]['reason']}")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} clips/s")
