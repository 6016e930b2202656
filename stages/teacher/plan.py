"""What a run of stage one still has to compute, whether it fits on the disk, and the plan of `--dry-run`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from cache.create import check_cache
from cache.differences import renewed_shards
from cache.errors import ReskdError
from cache.group import load_manifest
from cache.growth import missing_work
from cache.identity import ShardEntry
from cache.manifest import Manifest, bytes_of_clip_view
from cache.store import METADATA
from stages.remote.published_cache import PublishedCache
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.all_views import ShardWork
from stages.teacher.config import CacheConfig
from stages.teacher.identity import in_todays_names
from stages.teacher.size_planner import plan_sizes
from stages.teacher.teacher import Teacher

AT_ONCE = 2  # shards of a rank on the disk before they go to a store: one is written, one is put


def missing_of_shards(path: Path, manifest: Manifest, shards: Iterable[ShardEntry]) -> list[ShardWork]:
    """The views and targets that these shards lack."""
    return [
        ShardWork(e.name, views, targets) for e in shards for views, targets in missing_work(path, manifest, e.name)
    ]


def check_room(path: Path, wanted: Manifest, at_once: int | None = None) -> None:
    """Raises ReskdError where the run couldn't finish: the disk is too small, or the folder can't be written.

    `at_once`: how many shards are on the disk at once, where they go to a store from there; None: all.
    """
    parent = next(p for p in path.absolute().parents if p.exists())  # a dry run makes no folder
    sizes = sorted(_missing(path, wanted)[1], reverse=True)
    needed, free = sum(sizes[:at_once]), shutil.disk_usage(parent).free
    if needed > free and at_once is not None:
        raise ReskdError(f"{parent} has {free / 1e9:.2f} GB free, and {at_once} shards, up to {needed / 1e9:.2f} GB, lie there "
                         f"at once before they go to the store: set TMPDIR to a folder on a larger disk")  # fmt: skip
    if needed > free:
        raise ReskdError(f"{path}: up to {needed / 1e9:.2f} GB are missing, the disk has {free / 1e9:.2f} GB free: lower "
                         f"`views`, leave out `targets.features` or store less of them (--dry-run --budget "
                         f"{free / 1e9:.1f}GB shows what fits), or give another output")  # fmt: skip
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise ReskdError(f"{path} can't be written: give another output")


def show_plan(
    config: CacheConfig,
    data: Dataset,
    wanted: Manifest,
    teacher: Teacher,
    options: dict[str, Any],
    published: PublishedCache | None = None,
) -> dict:
    """Print what a run would compute, and what each encoding would take; returns both. Writes nothing.

    `published`: the cache in a store of which `config.output` is the local folder.
    `options`: budget, probe and grid of `plan_sizes`; None stands for its default.
    """
    clips = sum(e.clips for e in wanted.identity.shards)
    missing, sizes = _missing(config.output, wanted)
    plan = {
        "output": str(published.url if published else config.output),
        "shards": len(wanted.identity.shards),
        "clips": clips,
        "views": wanted.views,
        "clip_views_missing": missing,
        "bytes_of_clip_view": bytes_of_clip_view(wanted.identity),
        "bytes_missing_at_most": sum(sizes),
        "clip_views_recalibrated_on": clips * wanted.views if teacher.pending else 0,
    }
    table = Table(title="cache-teacher: what it would do", show_header=False)
    for name, value in plan.items():
        table.add_row(name, str(value))
    console.print(table)
    given = {name: value for name, value in options.items() if value is not None}
    plan |= plan_sizes(config, data, teacher, wanted, missing, **given)
    check_room(
        config.output, wanted, AT_ONCE if published else None
    )  # last: a user without room wants to see what would fit
    return plan


def _missing(path: Path, wanted: Manifest) -> tuple[int, list[int]]:
    """The clip·views that are not committed or are made anew, and the most bytes that those of each shard can take."""
    manifest, clips = check_cache(path, wanted, in_todays_names), {e.name: e.clips for e in wanted.identity.shards}
    anew = (
        renewed_shards(load_manifest(path).identity.shards, wanted.identity.shards)
        if (path / METADATA).exists()
        else []
    )
    kept = [entry for entry in manifest.identity.shards if entry not in anew]
    work = missing_of_shards(path, manifest, kept)
    work += [ShardWork(entry.name, range(manifest.views), tuple(manifest.identity.targets)) for entry in anew]
    counts = [(clips[w.shard] * len(w.views), w.targets) for w in work]
    sizes = [n * bytes_of_clip_view(manifest.identity, targets) for n, targets in counts]
    return sum(n for n, _ in counts), sizes
