"""The plan of `prepare`: the shards to be made, and the classes. It refuses bad labels and bad tars before any work."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.prepare.existing_shards import choose_field, merge_surveys, survey_shard
from stages.prepare.make_shards import Shard, index_shard, pack_shard, spread_clips
from stages.prepare.output_folder import WORK
from stages.prepare.source import Source
from stages.prepare.workers import Workers
from stages.shards.classes import class_table, forms_of_one_class

TAR_OVERHEAD = 1.02  # bytes of a tar, with its headers and padding, for each byte of video


@dataclass(frozen=True)
class Plan:
    """`make[shard](every_frame, advance)` makes a shard, and calls `advance(error)` after each clip."""

    classes: tuple[str, ...]
    clips: int
    make: dict[str, Callable[[bool, Callable[[str | None], None]], Shard]]
    sizes: dict[str, int]  # bytes that each shard will need; 0 for a tar that exists
    labelled: int | None = None  # clips; None if only the tars know
    several: int = 0  # clips with several labels
    without_video: int = 0  # of `clips`: keys in tars that have no video
    forms: tuple[str, ...] = ()  # classes whose name the source has in several Unicode forms


def make_plan(
    found: Source, source: Path, output: Path, workers: Workers, order: Sequence[str] | None, options: Mapping[str, Any]
) -> Plan:
    """The plan for the source. Writes nothing. `order`: class names in the order of their numbers.

    Raises ReskdError for labels that aren't classes, and for bad tars.
    """
    if found.tars:
        return _plan_index(found, source, workers, order)
    return _plan_packing(found, output, workers, order, options)


def _plan_packing(
    found: Source, output: Path, workers: Workers, order: Sequence[str] | None, options: Mapping[str, Any]
) -> Plan:
    """Packs videos into new tars."""
    classes, table = class_table(found.clip_list.labels, order, names=found.clip_list.labels_are_names)
    shards = spread_clips(found.clip_list.clips, seed=options["seed"], per_shard=options["clips_per_shard"],
                          max_bytes=options["max_shard_bytes"], limit=options["limit"])  # fmt: skip
    make, sizes = {}, {}
    for i, clips in enumerate(shards):
        name = f"{i:06d}.tar"
        make[name] = partial(pack_shard, output / name, output / WORK / name, clips, table, workers)
        sizes[name] = sum(clip.size or 0 for _, clip in clips)
    label_counts = [len(clip.labels) for clips in shards for _, clip in clips]
    labelled, several = (sum(count > least for count in label_counts) for least in (0, 1))
    forms = tuple(forms_of_one_class(found.clip_list.labels))
    return Plan(classes, len(label_counts), make, sizes, labelled, several, forms=forms)


def _plan_index(found: Source, source: Path, workers: Workers, order: Sequence[str] | None) -> Plan:
    """Indexes existing tars. All are scanned first, so that a bad tar is refused before hours of work."""
    tasks = (partial(survey_shard, source / name, order is not None) for name in found.tars)
    survey = merge_surveys(workers.map(tasks))
    field, labels = choose_field(survey)
    classes, table = class_table(labels, order, names=False)
    make = {name: partial(index_shard, source / name, name, field, table, workers) for name in found.tars}
    clips, forms = survey.clips + survey.without_video, tuple(forms_of_one_class(labels))
    return Plan(classes, clips, make, dict.fromkeys(found.tars, 0), without_video=survey.without_video, forms=forms)


def check_disk(plan: Plan, shards: Sequence[str], output: Path) -> None:
    """Raises ReskdError if the disk of `output` has no room for these shards."""
    needed, free = TAR_OVERHEAD * sum(plan.sizes[name] for name in shards), shutil.disk_usage(output).free
    if needed > free:
        raise ReskdError(f"{output}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. Make room and run again, or "
                         "choose another output")  # fmt: skip
