"""fsck of a cache: `verify` reads every byte and compares it with what was committed, `repair` removes what is damaged.

A group is removed only if its own files show that it is damaged. A person has to decide about a file that the disk can't
read, a data set that doesn't fit, and a manifest that fits no group: these are only reported.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.group import TEMPORARY, write_attributes
from cache.identity import CONSTANTS
from cache.manifest import Manifest
from cache.store import METADATA, make_folders, sync
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
    path = Path(path)
    problems, groups, expected = list(_check_root(path, manifest)), 0, expected_groups(path, manifest)
    for number, entry in enumerate(manifest.identity.shards):
        groups += (path / entry.name / METADATA).exists()
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
    instant, no reader takes the cache for finished, and `repair` can be run again.
    """
    path = Path(path)
    redo = sorted({p.shard for p in problems if p.remedy == REDO})
    if redo or any(p.shard for p in problems if p.remedy == RERUN):
        unfinished = replace(manifest, finalised=0, finalised_shards=0, finalised_targets=())
        write_attributes(path, unfinished.to_json())
    for shard in redo:
        trash = path / TEMPORARY / "damaged" / shard
        shutil.rmtree(trash, ignore_errors=True)
        make_folders(trash.parent)
        (path / shard).rename(trash)
        sync((path / shard).parent)
    if redo:
        shutil.rmtree(path / TEMPORARY, ignore_errors=True)
    for file in (file for p in problems if p.remedy == TIDY for file in p.files):
        (path / file).unlink(missing_ok=True)


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
    shards = {path / entry.name for entry in manifest.identity.shards}
    folders = {p for shard in shards for p in shard.parents if p.is_relative_to(path)} | {path}
    known = shards | folders | {path / name for name in (METADATA, *CONSTANTS)}
    for unknown in sorted({p for folder in folders if folder.is_dir() for p in folder.iterdir()} - known):
        if not unknown.name.startswith("."):
            yield Problem("", f"{unknown.relative_to(path).as_posix()}: not part of this cache", HAND)
