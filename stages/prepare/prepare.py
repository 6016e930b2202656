"""Stage 0: annotated videos -> tar shards in WebDataset's form, an index, and a report of what could not be read.

For shards that exist already it makes the index alone. To continue a killed run, run it again: each shard is written
whole and then noted, and index.json, which finishes the data set, is written last. At a URL, too. The files of this folder:

    source.py            what the source is; all that decides the output's bytes
      folders.py, csv_list.py             the user's own videos: class folders, or a CSV
      publishers.py, annotation_files.py  published annotations
      frame_folders.py                    rawframes: folders of pictures
      clips.py, clip_list.py              a clip; all clips of a source
      path_index.py                       from a listed name to a file
      existing_shards.py, tars_at_url.py  the labels in existing tars; tars in a store
    plan.py              the shards to be made, and the classes
    make_shards.py       packs a tar, or indexes an existing one; encode_frames.py makes a video from pictures
    workers.py, probe_videos.py, check.py  worker processes, which check each video; how thoroughly
    recheck.py           checks a finished data set again
    output.py            a folder, or a URL and the folder that its files are made in
    output_folder.py     the lock, the arguments and the notes of the output
    make_data_set.py     the shards one by one, and the index; summary.py: what is said of them
    duplicates.py        videos that occur twice
"""

import os
from collections.abc import Sequence
from pathlib import Path

from stages.prepare.check import Check, choose_check
from stages.prepare.duplicates import update_report
from stages.prepare.make_data_set import make_data_set
from stages.prepare.output import REPORT, output_at
from stages.prepare.output_folder import check_output, disk_errors, locked_output
from stages.prepare.plan import make_plan
from stages.prepare.progress import say
from stages.prepare.source import AnnotationOptions, published_name, read_source
from stages.prepare.summary import describe
from stages.prepare.workers import Workers
from stages.remote.url_path import Location, UrlPath, location, resolved
from stages.shards.classes import is_data_set, read_classes
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import INDEX


def prepare(
    source: Location | str,
    output: Location | str,
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
    folder `videos`. `annotations` with a folder as the source: a CSV of the videos in that folder. `output` may be a URL;
    `source`, too, if it has tar shards and is in the same bucket.
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
    no clip is readable; Changed if another run puts other objects at the URL; StoreError.
    """
    source, output, order = location(source), location(output), read_classes(classes)
    annotated = AnnotationOptions(_path(annotations), _path(videos), split, with_offset, frame_template, fps)
    if published_name(source, annotated) and source.exists():
        say(f"{source}: taken for the format of the annotations, not for the folder {source}.")
    options = {"clips_per_shard": clips_per_shard, "max_shard_bytes": max_shard_bytes, "seed": seed, "limit": limit}
    disjoint = _disjoint_data_sets(output, classes, disjoint_from)
    found = read_source(source, output, annotated, options, order)
    count = min(os.cpu_count() or 1 if workers is None else workers, max(len(found.clip_list.clips), len(found.tars)))
    with disk_errors(output), output_at(output, dry_run=dry_run) as made, Workers(count) as pool:
        check_output(made, found.arguments, among_tars=bool(found.tars))
        if (made.folder / INDEX).exists():
            data = open_dataset(output)
            data.check_files()
            say(f"{output} was finished before: {len(data.shards)} shards. Nothing to do.")
        else:
            plan = make_plan(found, source, made, pool, order, options)
            if dry_run:
                return describe(plan, found, made)
            with locked_output(made, found.arguments, among_tars=bool(found.tars)):
                chosen, why = choose_check(check, found, source, made, pool)
                say(f"Check: {chosen} ({why}).")
                data = make_data_set(plan, found, made, chosen)
        if dry_run:
            return None
        report = made.folder / REPORT
        if summary := update_report(made.with_local_rows(data) if disjoint else data, report, disjoint):
            say(f"{output / REPORT} lists clips that are in the data set, but odd: {summary}.")
        if report.exists():
            made.put(report)
        made.remove_work()
    return data


def _disjoint_data_sets(
    output: Location, classes: Location | Sequence[str] | None, disjoint_from: Sequence[Location]
) -> dict[str, Dataset]:
    """The data sets that should share no clip with the one in `output`, by their paths as given."""
    paths = [location(path) for path in disjoint_from]
    if isinstance(classes, (str, Path, UrlPath)) and is_data_set(location(classes)):
        paths.append(location(classes))
    return {str(path): open_dataset(path) for path in paths if resolved(path) != resolved(output)}


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)
