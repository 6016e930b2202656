"""fsck of a cache: `verify` reads every byte and compares it with what was committed, `repair` removes what is damaged.

A group is removed only if its own files show that it is damaged. A person has to decide about a file that the disk can't
read, a data set that doesn't fit, and a manifest that fits no group: these are only reported.
"""

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cache.errors import ReskdError
from cache.group import TEMPORARY, group_node, write_attributes
from cache.identity import CONSTANTS
from cache.json_file import parse_json
from cache.manifest import Manifest
from cache.store import METADATA, WRITER, as_path, make_folders, side_by_side, sync
from cache.verify_group import (
    DATA,
    FOREIGN,
    HAND,
    REDO,
    RERUN,
    TIDY,
    Problem,
    check_shard,
    expected_groups,
    file_fault,
    files_below,
)

__all__ = ["DATA", "HAND", "REDO", "RERUN", "TIDY", "Problem", "repair", "verify"]

Lengths = Callable[[str], np.ndarray | None]  # shard -> number of frames of each clip, int [N]; None: unknown


def verify(
    path: str | Path,
    manifest: Manifest,
    lengths: Lengths = lambda shard: None,
    progress: Callable[[str], None] = lambda shard: None,
) -> list[Problem]:
    """All problems of the cache at `path`: first those of the root, then those of each shard.

    A group that is not committed yet is a problem only if the manifest says that it is finished. `progress` is called with
    the name of each shard that was read.
    """
    path = as_path(path)
    problems, groups, expected = list(_check_root(path, manifest)), 0, expected_groups(path, manifest)
    for number, entry in enumerate(manifest.identity.shards):
        groups += (path / entry.name / METADATA).is_file()
        problems += check_shard(expected, entry, number < manifest.finalised_shards, lengths(entry.name))
        progress(entry.name)
    foreign = {p.shard for p in problems if p.remedy == FOREIGN}
    if foreign and len(foreign) == groups:  # the manifest may be the wrong file
        what = f"none of the {groups} groups fits the run that {METADATA} describes: groups or manifest were exchanged"
        return [Problem("", what, HAND)] + [p for p in problems if p.remedy != FOREIGN]
    return [replace(p, remedy=REDO) if p.remedy == FOREIGN else p for p in problems]


def repair(path: str | Path, manifest: Manifest, problems: Sequence[Problem]) -> None:
    """Remove what is damaged, so that cache-teacher computes that again and nothing else.

    First the manifest is changed: nothing is finished. Then each damaged group is renamed and deleted. After a kill at any
    instant, no reader takes the cache for finished, and `repair` can be run again. In a store, a group's attributes are
    deleted first. There, raises ReskdError if the manifest isn't `manifest` any more, or a process writes such a group.
    """
    path = as_path(path)
    if not isinstance(path, Path):
        _check_not_written(path, {p.shard for p in problems if p.remedy in (REDO, TIDY) and p.shard})
    redo = sorted({p.shard for p in problems if p.remedy == REDO})
    if redo or any(p.shard for p in problems if p.remedy == RERUN):
        unfinished = replace(manifest, finalised=0, finalised_shards=0, finalised_targets=())
        if isinstance(path, Path):
            write_attributes(path, unfinished.to_json())
        else:
            _replace_in_store(path, manifest, unfinished)
    for shard in redo if isinstance(path, Path) else ():
        trash = path / TEMPORARY / "damaged" / shard
        shutil.rmtree(trash, ignore_errors=True)
        make_folders(trash.parent)
        (path / shard).rename(trash)
        sync((path / shard).parent)
    if redo and isinstance(path, Path):
        shutil.rmtree(path / TEMPORARY, ignore_errors=True)
    for shard in () if isinstance(path, Path) else redo:
        (path / shard / METADATA).unlink()
        side_by_side(path, lambda file: (path / file).unlink(), files_below(path / shard, path))
    for file in (file for p in problems if p.remedy == TIDY for file in p.files):
        (path / file).unlink(missing_ok=True)


def _check_not_written(path: Any, shards: Collection[str]) -> None:
    found = side_by_side(path, lambda shard: (path / shard / WRITER).is_file(), sorted(shards))
    if any(found):
        writer = path / sorted(shards)[found.index(True)] / WRITER
        raise ReskdError(f"{writer}: a process writes this shard, or was killed while it did: run cache-teacher to the end, and "
                         "verify-cache again. Nothing was deleted")  # fmt: skip


def _replace_in_store(path: Any, manifest: Manifest, new: Manifest) -> None:
    """Put a new manifest in the place of the one that was checked."""
    old, etag = (path / METADATA).read_with_etag()
    if Manifest.from_json(parse_json(old, nan=True)["attributes"]) != manifest:
        raise ReskdError(f"{path}: its manifest changed while it was checked: wait until cache-teacher has ended, and run "
                         "verify-cache again")  # fmt: skip
    (path / METADATA).replace(group_node(new.to_json()), etag)


def _check_root(path: Path, manifest: Manifest) -> Iterator[Problem]:
    for file, digest in manifest.constants.items():
        if what := file_fault(path / file, digest):
            yield Problem("", f"{file}, which is needed to read features: {what}", RERUN)
    shares = (manifest.finalised, manifest.views), (manifest.finalised_shards, len(manifest.identity.shards))
    if any(not 0 <= part <= whole for part, whole in shares):
        yield Problem("", f"{METADATA} says that more is finished than is planned", RERUN)
    unlisted = [f for name in CONSTANTS for f in files_below(path / name, path) if f not in manifest.constants]
    if unlisted:
        yield Problem("", f"{unlisted[0]}: not listed ({len(unlisted)} files)", TIDY, tuple(unlisted))
    shards = {PurePosixPath(entry.name) for entry in manifest.identity.shards}
    folders = {parent for shard in shards for parent in shard.parents} | {PurePosixPath()}
    known = shards | folders | {PurePosixPath(name) for name in (METADATA, *CONSTANTS)}
    present = {
        folder / p.name for folder in folders if _may_be_listed(path / folder) for p in (path / folder).iterdir()
    }
    for unknown in sorted(present - known):
        if not unknown.name.startswith("."):
            yield Problem("", f"{unknown}: not part of this cache", HAND)


def _may_be_listed(folder: Path) -> bool:
    """Whether it is a folder. In a store a folder that isn't there is an empty one."""
    return not isinstance(folder, Path) or folder.is_dir()
