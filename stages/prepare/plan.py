"""The plan of `prepare`: the shards to be made, and the classes. It refuses bad labels and bad tars before any work."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.prepare.existing_shards import Survey, choose_field, merge_surveys, survey_shard
from stages.prepare.make_shards import Shard, index_shard, pack_shard, spread_clips
from stages.prepare.output import WORK, Output
from stages.prepare.progress import say
from stages.prepare.source import Source
from stages.prepare.tars_at_url import kept_tars, local_tar
from stages.prepare.workers import Workers
from stages.remote.outputs import MAX_PUT
from stages.remote.url_path import Location
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
    found: Source,
    source: Location,
    output: Output,
    workers: Workers,
    order: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Plan:
    """The plan for the source. Writes nothing. `order`: class names in the order of their numbers.

    Raises ReskdError for labels that aren't classes, for bad tars, and for shards that are too large for a store.
    """
    if found.tars:
        return _plan_index(found, source, output.folder, workers, order)
    return _plan_packing(found, output, workers, order, options)


def _plan_packing(
    found: Source, output: Output, workers: Workers, order: Sequence[str] | None, options: Mapping[str, Any]
) -> Plan:
    """Packs videos into new tars."""
    classes, table = class_table(found.clip_list.labels, order, names=found.clip_list.labels_are_names)
    shards = spread_clips(found.clip_list.clips, seed=options["seed"], per_shard=options["clips_per_shard"],
                          max_bytes=options["max_shard_bytes"], limit=options["limit"])  # fmt: skip
    make, sizes = {}, {}
    for i, clips in enumerate(shards):
        name, folder = f"{i:06d}.tar", output.folder
        make[name] = partial(pack_shard, folder / name, folder / WORK / name, clips, table, workers)
        sizes[name] = sum(clip.size or 0 for _, clip in clips)
        if output.mirror and TAR_OVERHEAD * sizes[name] > MAX_PUT:
            raise ReskdError(f"{output.place / name} would have {sizes[name] / 2**30:.1f} GiB, and a store takes "
                             f"{MAX_PUT / 2**30:.0f} GiB in one conditional request. Give a smaller --set max_shard_bytes, "
                             "or make the data set in a folder, and copy it")  # fmt: skip
    label_counts = [len(clip.labels) for clips in shards for _, clip in clips]
    labelled, several = (sum(count > least for count in label_counts) for least in (0, 1))
    forms = tuple(forms_of_one_class(found.clip_list.labels))
    return Plan(classes, len(label_counts), make, sizes, labelled, several, forms=forms)


def _plan_index(found: Source, source: Location, folder: Path, workers: Workers, order: Sequence[str] | None) -> Plan:
    """Indexes existing tars. All are scanned first, so that a bad tar is refused before hours of work.

    `folder`: the working folder, for copies of tars at a URL.
    """
    with_text = order is not None
    if isinstance(source, Path):
        surveys = workers.map(partial(survey_shard, source / name, with_text) for name in found.tars)
    else:
        surveys = _surveys_of_copies(found.tars, source, folder, with_text)
    survey = merge_surveys(surveys)
    field, labels = choose_field(survey)
    classes, table = class_table(labels, order, names=False)
    make = {
        name: partial(_index_tar, source, name, size, folder, field, table, workers)
        for name, size in found.tars.items()
    }
    clips, forms = survey.clips + survey.without_video, tuple(forms_of_one_class(labels))
    return Plan(classes, clips, make, dict.fromkeys(found.tars, 0), without_video=survey.without_video, forms=forms)


def _surveys_of_copies(tars: Mapping[str, int], source: Location, folder: Path, with_text: bool) -> Iterator[Survey]:
    """The surveys of tars at a URL, one copy after the other. As many copies stay as the disk takes."""
    say(
        f"{source}: {len(tars)} tars, {sum(tars.values()) / 1e9:.3f} GB. Each is copied to this machine to read its labels."
    )
    kept = kept_tars(tars, folder)
    for name, size in tars.items():
        with local_tar(source, name, size, folder, keep=name in kept) as tar:
            yield survey_shard(tar, with_text, str(source / name))


def _index_tar(source: Location, name: str, size: int, folder: Path, *rest: Any) -> Shard:
    """`index_shard` for a tar or the copy of one."""
    with local_tar(source, name, size, folder, keep=False) as tar:
        return index_shard(tar, name, *rest)


def check_disk(plan: Plan, shards: Sequence[str], output: Output) -> None:
    """Raises ReskdError if the disk has no room for these shards; on the way to a URL, for the largest of them."""
    sizes = [plan.sizes[name] for name in shards]
    needed = TAR_OVERHEAD * (max(sizes, default=0) if output.mirror else sum(sizes))
    free = shutil.disk_usage(output.folder).free
    if needed > free:
        place, remedy = output.place, "choose another output"
        if output.mirror:
            place, remedy = output.folder.parent, "set TMPDIR to a folder of a larger disk"
        raise ReskdError(f"{place}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. Make room and run again, or "
                         f"{remedy}")  # fmt: skip
