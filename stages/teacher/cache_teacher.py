"""Stage one: the teacher runs once over every stored view of every clip; its targets go into the cache."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from cache.create import check_cache, create_cache
from cache.errors import ReskdError
from cache.finalise import finalise
from cache.group import load_manifest
from cache.growth import missing_work
from cache.identity import ShardEntry
from cache.manifest import Manifest, bytes_of_clip_view
from cache.reader import CacheReader
from cache.teacher_time import NOTE, open_time_log, teacher_time_of
from stages.runtime.distributed import Ranks, join_ranks
from stages.runtime.lock import in_use
from stages.runtime.log import console
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.all_views import ViewBatch, Work
from stages.teacher.audit import teacher_accuracy, verify_targets
from stages.teacher.batch_norm_pass import estimate_statistics
from stages.teacher.config import CacheConfig
from stages.teacher.encodings import described_error
from stages.teacher.forward import Forward, teacher_forwards
from stages.teacher.identity import in_todays_names
from stages.teacher.reduction import error_of, estimate
from stages.teacher.sample_maps import sample_maps
from stages.teacher.size_planner import plan_sizes
from stages.teacher.target_writer import Rows, Store, storing
from stages.teacher.teacher import Teacher, load_teacher, root_arrays, with_constants
from stages.teacher.view_batches import view_batches


def cache_teacher(
    config: CacheConfig, *, strict: bool = False, dry_run: bool = False, verify: int = 0, **planned: Any
) -> dict:
    """Bring the cache up to `config.views` views of every clip; what is committed is never done again.

    Returns {"clip_views": computed by this rank, "seconds", "bytes": of the cache, "quarantined": clips,
    "top1": of the teacher on its cached views in percent, None where no clip is labelled, "verified": largest
    difference found, None where not asked for, "paid": for the cache so far, as its manifest notes it}; for `dry_run`,
    what it would do and what every encoding would take, and nothing is written; `planned` are the budget, probe and
    grid of `plan_sizes`.
    `strict`: an unreadable clip is fatal. `verify`: recompute so many random clip·views and compare.
    """
    if not dry_run and any(value is not None for value in planned.values()):
        raise ReskdError("--budget, --probe and --student-grid are the planner's: give --dry-run, too")
    started = time.perf_counter()
    data = open_dataset(config.data)
    data.check_files()
    with join_ranks(patience=timedelta(days=7)) as ranks:  # shards differ: the first to finish waits for the last
        teacher, wanted = load_teacher(config, data, ranks.device)
        if dry_run:
            return _show_plan(config, data, wanted, teacher, planned)
        with in_use(config.output) if ranks.first else nullcontext():
            ranks.first_does(partial(_check_room, config.output, wanted))
            if ranks.any(teacher.pending is not None):
                estimate_statistics(config, data, teacher, ranks, strict)
                teacher, wanted = load_teacher(config, data, ranks.device)  # every rank the same
            if teacher.features and teacher.constants is None:
                teacher, wanted = _estimated(config, data, teacher, wanted, ranks)
            ranks.first_does(partial(create_cache, config.output, wanted, root_arrays(teacher), in_todays_names))
            manifest = load_manifest(config.output)
            done = fill(config, data, teacher, manifest, ranks, strict, started)
            ranks.barrier()
            if not ranks.first:
                return {"clip_views": done}
            return _report(config, data, teacher, finalise(config.output), done, started, verify)


def cache_shard(
    work: Work,
    keys: list[str],
    ask: Forward,
    batches: Iterable[ViewBatch],
    store: Store,
    submit: Callable[..., None],
) -> int:
    """Compute the missing views of one shard and have them committed; returns the clip·views computed.

    Idempotent, the unit of work of every engine: one process owns a shard's group while it is here, and a forward
    holds rows of one shard and view, in tar order, in the batch size which the manifest fixes. So the content does
    not depend on who computes it (bit by bit on one CPU with one number of threads). `ask` is of `asking`, `store` and
    `submit` of `storing`: encoding and writing are done behind the forwards, also of the next shard.
    """
    computed = 0
    submit(store.open, work, keys)
    for batch in batches:
        n = len(batch.frames)
        rows = slice(batch.start, batch.start + n)
        for what, reasons in (("quarantined", batch.quarantine), ("fallback", batch.fallbacks)):
            submit(store.note, what, reasons)
        for j, view in enumerate(work.views):
            part = Rows(view, rows, batch.frames[:, j], batch.box[:, j], batch.flip[:, j], batch.quarantine)
            submit(store.write, part, ask(batch.clips[j], work.targets))
        computed += (n - len(batch.quarantine)) * len(work.views)
        if rows.stop == len(keys):  # not by asking for more, which may be the next shard's error
            break
    submit(store.commit)
    return computed


def _estimated(
    config: CacheConfig, data: Dataset, teacher: Teacher, wanted: Manifest, ranks: Ranks
) -> tuple[Teacher, Manifest]:
    """The teacher with the basis and ranges that rank 0 estimates for it, and the manifest with their error."""
    found: list = [None]

    def work() -> None:
        asked = teacher.features
        sample = sample_maps(config, data, teacher, ranks, asked.sample)
        constants = estimate(sample, asked.codec, asked.dims, asked.energy)
        found[0] = constants, error_of(sample, constants, asked.codec)

    ranks.first_does(work)
    constants, error = ranks.gather(found[0])[0]
    lost = wanted.identity.targets["features"].get("constants_sha256")
    teacher, wanted = with_constants(teacher, wanted, constants)
    if lost not in (None, wanted.identity.targets["features"]["constants_sha256"]):
        raise ReskdError(f"{config.output}: the basis or the ranges of its features are lost, and estimated again they are "
                         f"others (it has grown, or this machine computes otherwise): restore the folders {', '.join(constants)} "
                         f"in it from a copy, or set targets.features.basis to a cache that has the same")  # fmt: skip
    return teacher, replace(wanted, notes={"features": error})


def _work(path: Path, manifest: Manifest, shards: Iterable[ShardEntry]) -> list[Work]:
    """What these shards lack."""
    return [Work(e.name, views, targets) for e in shards for views, targets in missing_work(path, manifest, e.name)]


def fill(
    config: CacheConfig,
    data: Dataset,
    teacher: Teacher,
    manifest: Manifest,
    ranks: Ranks,
    strict: bool = False,
    began: float | None = None,
) -> int:
    """The work of this rank: every W-th shard that lacks views. Returns the clip·views computed.

    `began`: when the run did, by `time.perf_counter`, from which its seconds are counted; None: just now.
    """
    work, done = _work(config.output, manifest, data.shards[ranks.rank :: ranks.world]), 0
    spend = open_time_log(config.output, ranks.rank, time.perf_counter() if began is None else began)
    with (
        view_batches(config, data, work, teacher, ranks, strict, "cache-teacher") as batches,
        teacher_forwards(teacher) as ask,
        storing(config.output, manifest, spend) as (store, submit),
    ):
        for of, of_shard in itertools.groupby(batches, key=lambda batch: batch.work):
            keys = [row.key for row in data.rows(of.shard)]
            done += cache_shard(of, keys, ask, of_shard, store, submit)
    if work:
        spend(0.0, 0)  # the time of the last commit
    return done


def _missing(path: Path, wanted: Manifest) -> tuple[int, int]:
    """Clip·views that are not committed, and the bytes that they will take at most."""
    manifest, clips = check_cache(path, wanted, in_todays_names), {e.name: e.clips for e in wanted.identity.shards}
    work = _work(path, manifest, manifest.identity.shards)
    count = [(clips[w.shard] * len(w.views), w.targets) for w in work]
    size = sum(n * bytes_of_clip_view(manifest.identity, targets) for n, targets in count)
    return sum(n for n, _ in count), size


def _check_room(path: Path, wanted: Manifest) -> None:
    """Refuse before work what can't be finished: a disk too small, a folder that can't be written."""
    parent = next(p for p in path.absolute().parents if p.exists())  # a dry run makes no folder
    need = _missing(path, wanted)[1]
    free = shutil.disk_usage(parent).free
    if need > free:
        raise ReskdError(f"{path}: up to {need / 1e9:.2f} GB are missing, the disk has {free / 1e9:.2f} GB free: lower "
                         f"`views`, leave out `targets.features` or store less of them (--dry-run --budget "
                         f"{free / 1e9:.1f}GB shows what fits), or give another output")  # fmt: skip
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise ReskdError(f"{path} can't be written: give another output")


def _show_plan(config: CacheConfig, data: Dataset, wanted: Manifest, teacher: Teacher, planned: dict[str, Any]) -> dict:
    clips = sum(e.clips for e in wanted.identity.shards)
    (missing, size), each = _missing(config.output, wanted), bytes_of_clip_view(wanted.identity)
    plan = {
        "output": str(config.output),
        "shards": len(wanted.identity.shards),
        "clips": clips,
        "views": wanted.views,
        "clip_views_missing": missing,
        "bytes_of_clip_view": each,
        "bytes_missing_at_most": size,
        "clip_views_recalibrated_on": clips * wanted.views if teacher.pending else 0,
    }
    table = Table(title="cache-teacher: what it would do", show_header=False)
    for name, value in plan.items():
        table.add_row(name, str(value))
    console.print(table)
    options = {name: value for name, value in planned.items() if value is not None}
    plan |= plan_sizes(config, data, teacher, wanted, missing, **options)
    _check_room(config.output, wanted)  # last: who lacks room wants to see what would fit
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
        "paid": manifest.notes.get(NOTE),
    }
    console.print(
        f"{config.output}: {manifest.views} views of {sum(e.clips for e in data.shards)} clips, "
        f"{result['bytes'] / 1e6:.1f} MB, {result['quarantined']} quarantined; computed {done} clip·views in "
        f"{result['seconds']:.1f} s" + ("" if top1 is None else f"; the teacher's top-1 on its views: {top1:.2f} %")
    )
    if (paid := teacher_time_of(config.output, manifest.notes)) is not None:
        console.print(str(paid), highlight=False)
    if "features" in manifest.notes:
        console.print(f"features, {described_error(manifest.notes['features'])}", highlight=False)
    return result
