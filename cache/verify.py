"""fsck of a cache: every byte is read and held against what was committed; `repair` alone changes anything.

What is whole is never given up: a group goes only where its own files say that it is damaged. A file that a disk
refuses to read, a data set that doesn't fit and a manifest that fits no group are reported, and left to a person.
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
    fault,
    files_below,
    wanted_groups,
)

__all__ = ["DATA", "HAND", "REDO", "RERUN", "TIDY", "Problem", "repair", "verify"]

Lengths = Callable[[str], np.ndarray | None]  # shard -> frames of each of its clips, int [N]; None: not known


def verify(
    path: str | Path,
    manifest: Manifest,
    lengths: Lengths = lambda shard: None,
    progress: Callable[[str], None] = lambda shard: None,
) -> list[Problem]:
    """All that is wrong with the cache at `path`, of its root first, then by shard; empty where it is whole.

    What is not committed yet is no problem where the manifest doesn't call it finished. `progress` is called with each
    shard that was read.
    """
    path = Path(path)
    problems, groups, wanted = list(_check_root(path, manifest)), 0, wanted_groups(path, manifest)
    for number, entry in enumerate(manifest.identity.shards):
        groups += (path / entry.name / METADATA).exists()
        problems += check_shard(wanted, entry, number < manifest.finalised_shards, lengths(entry.name))
        progress(entry.name)
    foreign = {p.shard for p in problems if p.remedy == FOREIGN}
    if foreign and len(foreign) == groups:  # the manifest is as likely to be the wrong one
        what = f"none of the {groups} groups is of the run that {METADATA} describes: groups or manifest were exchanged"
        return [Problem("", what, HAND)] + [p for p in problems if p.remedy != FOREIGN]
    return [replace(p, remedy=REDO) if p.remedy == FOREIGN else p for p in problems]


def repair(path: str | Path, manifest: Manifest, problems: Sequence[Problem]) -> None:
    """Remove what is damaged, so that cache-teacher redoes that and nothing else.

    First the manifest calls nothing finished any more, then each damaged group is renamed out of the way and deleted:
    whenever it is killed, no reader takes the cache for whole, and it can be run again.
    """
    path = Path(path)
    redo = sorted({p.shard for p in problems if p.remedy == REDO})
    if redo or any(p.shard for p in problems if p.remedy == RERUN):
        nothing = replace(manifest, finalised=0, finalised_shards=0, finalised_targets=())
        write_attributes(path, nothing.to_json())
    for shard in redo:
        away = path / TEMPORARY / "damaged" / shard
        shutil.rmtree(away, ignore_errors=True)
        make_folders(away.parent)
        (path / shard).rename(away)
        sync((path / shard).parent)
    if redo:
        shutil.rmtree(path / TEMPORARY, ignore_errors=True)
    for file in (file for p in problems if p.remedy == TIDY for file in p.files):
        (path / file).unlink(missing_ok=True)


def _check_root(path: Path, manifest: Manifest) -> Iterator[Problem]:
    for file, digest in manifest.constants.items():
        if what := fault(path / file, digest):
            yield Problem("", f"{file}, by which features are read: {what}", RERUN)
    shares = (manifest.finalised, manifest.views), (manifest.finalised_shards, len(manifest.identity.shards))
    if any(not 0 <= part <= whole for part, whole in shares):
        yield Problem("", f"{METADATA} calls more finished than is planned", RERUN)
    left = [f for name in CONSTANTS for f in files_below(path / name, path) if f not in manifest.constants]
    if left:
        yield Problem("", f"{left[0]}: not listed ({len(left)} files)", TIDY, tuple(left))
    shards = {path / entry.name for entry in manifest.identity.shards}
    folders = {p for shard in shards for p in shard.parents if p.is_relative_to(path)} | {path}
    own = shards | folders | {path / name for name in (METADATA, *CONSTANTS)}
    for stranger in sorted({p for folder in folders if folder.is_dir() for p in folder.iterdir()} - own):
        if not stranger.name.startswith("."):
            yield Problem("", f"{stranger.relative_to(path).as_posix()}: not of this cache", HAND)
