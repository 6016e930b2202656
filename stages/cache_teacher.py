"""Stage one: the teacher runs once over every stored view of every clip; its targets go into the cache."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from cache.errors import ReskdError
from cache.manifest import Manifest, bytes_of_clip_view
from cache.reader import CacheReader, load_manifest
from cache.writer import ShardWriter, check_cache, committed_views, create_cache, finalise
from stages.config import CacheConfig
from stages.data.shards import Dataset, open_dataset
from stages.data.views import ViewBatch, Work
from stages.distill.teacher import Teacher, load_teacher
from stages.training.audit import teacher_accuracy, verify_targets
from stages.training.distributed import Ranks, ranks
from stages.training.log import console
from stages.training.passes import estimate_statistics, view_batches
from stages.training.state import in_use


def cache_teacher(config: CacheConfig, *, strict: bool = False, dry_run: bool = False, verify: int = 0) -> dict:
    """Bring the cache up to `config.views` views of every clip; what is committed is never done again.

    Returns {"clip_views": computed by this rank, "seconds", "bytes": of the cache, "quarantined": clips,
    "top1": of the teacher on its cached views in percent, None where no clip is labelled, "verified": largest
    difference found, None where not asked for}; for `dry_run`, what it would do, and nothing is written.
    `strict`: an unreadable clip is fatal. `verify`: recompute so many random clip·views and compare.
    """
    started = time.perf_counter()
    data = open_dataset(config.data)
    data.check_files()
    with ranks(patience=timedelta(days=7)) as at:  # shards differ: the first to finish waits for the last
        teacher, wanted = load_teacher(config, data, at.device)
        if dry_run:
            check_cache(config.output, wanted)
            _check_room(config.output, wanted)
            return _show_plan(config, wanted, teacher)
        with in_use(config.output) if at.first else nullcontext():
            at.first_does(lambda: _check_room(config.output, check_cache(config.output, wanted)))
            if at.any(teacher.pending is not None):
                estimate_statistics(config, data, teacher, at, strict)
                teacher, wanted = load_teacher(config, data, at.device)  # every rank the same
            at.first_does(partial(create_cache, config.output, wanted, teacher.classifier))
            manifest = load_manifest(config.output)
            done = _fill(config, data, teacher, manifest, at, strict)
            at.barrier()
            if not at.first:
                return {"clip_views": done}
            return _report(config, data, teacher, finalise(config.output), done, started, verify)


def cache_shard(
    path: Path,
    manifest: Manifest,
    work: Work,
    keys: list[str],
    teacher: Teacher,
    batches: Iterable[ViewBatch],
) -> int:
    """Compute and commit the missing views of one shard; returns the clip·views computed.

    Idempotent, the unit of work of every engine: one process owns a shard's group while it is here, and a forward
    holds rows of one shard and view, in tar order, in the batch size which the manifest fixes. So the content does
    not depend on who computes it (bit by bit on one CPU with one number of threads).
    """
    writer = ShardWriter(path, manifest, work.shard, keys, work.views)
    quarantine, fallbacks, computed = {}, {}, 0
    try:
        for batch in batches:
            n = len(batch.frames)
            rows = slice(batch.start, batch.start + n)
            valid = np.array([key not in batch.quarantine for key in keys[rows]])
            for j, view in enumerate(work.views):
                targets = {name: value[:n] for name, value in teacher.run(batch.clips[j]).items()}
                writer.write(
                    view,
                    rows,
                    frames=batch.frames[:, j],
                    box=batch.box[:, j],
                    flip=batch.flip[:, j],
                    valid=valid,
                    **targets,
                )
            quarantine |= batch.quarantine
            fallbacks |= batch.fallbacks
            computed += int(valid.sum()) * len(work.views)
            for what, reasons in (("quarantined", batch.quarantine), ("fallback", batch.fallbacks)):
                for key, reason in reasons.items():
                    console.print(f"[yellow]{what}[/] {work.shard}/{key}: {reason}", highlight=False)
            if rows.stop == len(keys):  # not by asking for more, which may be the next shard's error
                break
        writer.commit(quarantine, fallbacks)
    except BaseException:
        writer.abort()
        raise
    return computed


def _fill(config: CacheConfig, data: Dataset, teacher: Teacher, manifest: Manifest, at: Ranks, strict: bool) -> int:
    """The work of this rank: every W-th shard that lacks views."""
    mine = data.shards[at.rank :: at.world]
    work = [Work(e.name, range(committed_views(config.output, e.name), manifest.views)) for e in mine]
    work = [w for w in work if len(w.views)]
    done, shards = 0, {w.shard: w for w in work}

    with view_batches(config, data, work, teacher, at, strict, "cache-teacher") as batches:
        for shard, of_shard in itertools.groupby(batches, key=lambda batch: batch.shard):
            keys = [row.key for row in data.rows(shard)]
            done += cache_shard(config.output, manifest, shards[shard], keys, teacher, of_shard)
    return done


def _missing(path: Path, wanted: Manifest) -> int:
    """Clip·views that are not committed."""
    clips = {e.name: e.clips for e in wanted.identity.shards}
    return sum(n * max(0, wanted.views - (committed_views(path, s) if path.exists() else 0)) for s, n in clips.items())


def _check_room(path: Path, wanted: Manifest) -> None:
    """Refuse before work what can't be finished: a disk too small, a folder that can't be written."""
    parent = next(p for p in path.absolute().parents if p.exists())  # a dry run makes no folder
    need = _missing(path, wanted) * bytes_of_clip_view(wanted.identity)
    free = shutil.disk_usage(parent).free
    if need > free:
        raise ReskdError(f"{path}: up to {need / 1e9:.2f} GB are missing, the disk has {free / 1e9:.2f} GB free: lower "
                         f"`views`, leave out `targets.features`, or give another output")  # fmt: skip
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise ReskdError(f"{path} can't be written: give another output")


def _show_plan(config: CacheConfig, wanted: Manifest, teacher: Teacher) -> dict:
    clips = sum(e.clips for e in wanted.identity.shards)
    missing, each = _missing(config.output, wanted), bytes_of_clip_view(wanted.identity)
    plan = {
        "output": str(config.output),
        "shards": len(wanted.identity.shards),
        "clips": clips,
        "views": wanted.views,
        "clip_views_missing": missing,
        "bytes_of_clip_view": each,
        "bytes_missing_at_most": missing * each,
        "clip_views_recalibrated_on": clips * wanted.views if teacher.pending else 0,
    }
    table = Table(title="cache-teacher: what it would do", show_header=False)
    for name, value in plan.items():
        table.add_row(name, str(value))
    console.print(table)
    return plan


def _report(
    config: CacheConfig, data: Dataset, teacher: Teacher, manifest: Manifest, done: int, started: float, verify: int
) -> dict:
    reader = CacheReader(config.output, tuple(manifest.identity.targets))
    top1 = teacher_accuracy(data, manifest, reader)
    result = {
        "clip_views": done,
        "seconds": time.perf_counter() - started,
        "bytes": sum(p.stat().st_size for p in config.output.rglob("*") if p.is_file()),
        "quarantined": sum(map(len, manifest.quarantine.values())),
        "top1": top1,
        "verified": verify_targets(data, manifest, reader, teacher, verify) if verify else None,
    }
    console.print(
        f"{config.output}: {manifest.views} views of {sum(e.clips for e in data.shards)} clips, "
        f"{result['bytes'] / 1e6:.1f} MB, {result['quarantined']} quarantined; computed {done} clip·views in "
        f"{result['seconds']:.1f} s" + ("" if top1 is None else f"; the teacher's top-1 on its views: {top1:.2f} %")
    )
    return result
