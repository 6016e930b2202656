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
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.all_views import ShardWork
from stages.teacher.config import CacheConfig
from stages.teacher.identity import in_todays_names
from stages.teacher.size_planner import plan_sizes
from stages.teacher.teacher import Teacher


def missing_of_shards(path: Path, manifest: Manifest, shards: Iterable[ShardEntry]) -> list[ShardWork]:
    """The views and targets that these shards lack."""
    return [
        ShardWork(e.name, views, targets) for e in shards for views, targets in missing_work(path, manifest, e.name)
    ]


def check_room(path: Path, wanted: Manifest) -> None:
    """Raises ReskdError where the run couldn't finish: the disk is too small, or the folder can't be written."""
    parent = next(p for p in path.absolute().parents if p.exists())  # a dry run makes no folder
    needed = _missing(path, wanted)[1]
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ReskdError(f"{path}: up to {needed / 1e9:.2f} GB are missing, the disk has {free / 1e9:.2f} GB free: lower "
                         f"`views`, leave out `targets.features` or store less of them (--dry-run --budget "
                         f"{free / 1e9:.1f}GB shows what fits), or give another output")  # fmt: skip
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise ReskdError(f"{path} can't be written: give another output")


def show_plan(config: CacheConfig, data: Dataset, wanted: Manifest, teacher: Teacher, options: dict[str, Any]) -> dict:
    """Print what a run would compute, and what each encoding would take; returns both. Writes nothing.

    `options`: budget, probe and grid of `plan_sizes`; None stands for its default.
    """
    clips = sum(e.clips for e in wanted.identity.shards)
    missing, missing_bytes = _missing(config.output, wanted)
    plan = {
        "output": str(config.output),
        "shards": len(wanted.identity.shards),
        "clips": clips,
        "views": wanted.views,
        "clip_views_missing": missing,
        "bytes_of_clip_view": bytes_of_clip_view(wanted.identity),
        "bytes_missing_at_most": missing_bytes,
        "clip_views_recalibrated_on": clips * wanted.views if teacher.pending else 0,
    }
    table = Table(title="cache-teacher: what it would do", show_header=False)
    for name, value in plan.items():
        table.add_row(name, str(value))
    console.print(table)
    given = {name: value for name, value in options.items() if value is not None}
    plan |= plan_sizes(config, data, teacher, wanted, missing, **given)
    check_room(config.output, wanted)  # last: a user without room wants to see what would fit
    return plan


def _missing(path: Path, wanted: Manifest) -> tuple[int, int]:
    """The clip·views that are not committed or are made anew, and the most bytes that they can take."""
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
    size = sum(n * bytes_of_clip_view(manifest.identity, targets) for n, targets in counts)
    return sum(n for n, _ in counts), size
