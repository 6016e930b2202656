"""Stage one: the teacher runs once over every stored view of every clip; its targets go into the cache."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.teacher_time import NOTE, open_time_log, teacher_time_of
from stages.engine.engine import Engine
from stages.remote.outputs import total_bytes
from stages.remote.published_cache import PublishedCache
from stages.runtime.distributed import Ranks, join_ranks, ranks_of_machine
from stages.runtime.lock import locked
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.rules import check_rules
from stages.teacher.audit import teacher_accuracy, verify_targets
from stages.teacher.batch_norm_pass import estimate_statistics
from stages.teacher.cache_shard import cache_shard
from stages.teacher.config import CacheConfig
from stages.teacher.constants import root_arrays, with_constants
from stages.teacher.encodings import describe_error
from stages.teacher.engine_units import compute_on_engine
from stages.teacher.forward import async_forward
from stages.teacher.load_teacher import load_teacher
from stages.teacher.plan import AT_ONCE, check_room, missing_of_shards, show_plan
from stages.teacher.reduction import encoding_error, estimate_constants
from stages.teacher.sample_maps import sample_maps
from stages.teacher.target_writer import target_writer
from stages.teacher.teacher import Teacher
from stages.teacher.url_output import (
    change_root,
    claim_in,
    create,
    finish,
    left_by_others,
    made_locally,
)
from stages.teacher.view_batches import view_batches


def cache_teacher(
    config: CacheConfig,
    *,
    strict: bool = False,
    dry_run: bool = False,
    verify: int = 0,
    engine: Engine | None = None,
    **plan_options: Any,
) -> dict:
    """Bring the cache up to `config.views` views of every clip; what is committed is never computed again.

    Returns {"clip_views": computed by this rank, "seconds", "bytes": of the cache, "quarantined": clips,
    "top1": of the teacher on its cached views in percent, None where no clip is labelled, "verified": largest
    difference of a recomputed logit, None without `verify`, "teacher_time": spent on the cache so far, as in its
    manifest}. `dry_run` returns the plan of `show_plan` and writes nothing; `plan_options` are its budget, probe and grid.
    `strict`: an unreadable clip is an error. `verify`: recompute this number of random clip·views and compare. `engine`:
    where shards are computed; None: by the ranks.
    """
    if not dry_run and any(value is not None for value in plan_options.values()):
        raise ReskdError("--budget, --probe and --student-grid are options of the size planner: give --dry-run, too")
    started = time.perf_counter()
    data = open_dataset(config.data)
    check_rules(data)
    data.check_files()
    with (
        join_ranks(timeout=timedelta(days=7)) as ranks,  # shards differ: the first rank to finish waits for the last
        made_locally(config, ranks, dry_run) as (config, published),
    ):
        teacher, wanted = load_teacher(config, data, ranks.device)
        if dry_run:
            return show_plan(config, data, wanted, teacher, plan_options, published)
        with locked(config.output) if ranks.first and published is None else nullcontext():
            at_once = None if published is None else AT_ONCE * ranks_of_machine()
            ranks.run_on_first(partial(check_room, config.output, wanted, at_once))
            if ranks.any(teacher.pending is not None):
                estimate_statistics(config, data, teacher, ranks, strict)
                change_root(published, ranks, lambda: None)  # the teacher is in it
                teacher, wanted = load_teacher(config, data, ranks.device)  # the same teacher on every rank
            if teacher.features and teacher.constants is None:
                teacher, wanted = _with_estimated_constants(config, data, teacher, wanted, ranks)
            constants = root_arrays(teacher, with_classifier="logits" in wanted.identity.targets)
            change_root(published, ranks, partial(create, published, config.output, wanted, constants))
            manifest = load_manifest(config.output)
            if engine is not None:
                computed = compute_on_engine(engine, config, data, manifest, strict, started, published)
            else:
                computed = compute_missing(config, data, teacher, manifest, ranks, strict, started, published)
            ranks.barrier()
            if not ranks.first:
                return {"clip_views": computed}
            manifest = finish(published, config.output)
            return _report(config, data, teacher, manifest, computed, started, verify, published)


def compute_missing(
    config: CacheConfig,
    data: Dataset,
    teacher: Teacher,
    manifest: Manifest,
    ranks: Ranks,
    strict: bool = False,
    started: float | None = None,
    published: PublishedCache | None = None,
) -> int:
    """Compute what this rank's shards lack: every W-th shard of the data set. Returns the clip·views computed.

    `started`: when the run started, by `time.perf_counter`; its seconds are counted from then. None: from now.
    `published`: the cache in a store of which `config.output` is the local folder. Of its shards, those that another machine
    writes are left out, and looked at again when the others are done.
    """
    missing = missing_of_shards(config.output, manifest, data.shards[ranks.rank :: ranks.world])
    record = open_time_log(config.output, ranks.rank, time.perf_counter() if started is None else started)
    computed = 0
    while missing:
        with (
            view_batches(
                config, data, missing, teacher, ranks, strict, "cache-teacher", claim_in(published, manifest)
            ) as batches,
            async_forward(teacher, manifest.identity.targets) as forward,
            target_writer(config.output, manifest, record, published) as (writer, submit),
        ):
            for work, shard_batches in itertools.groupby(batches, key=lambda batch: batch.work):
                keys = [row.key for row in data.rows(work.shard)]
                computed += cache_shard(work, keys, forward, shard_batches, writer, submit)
        record(0.0, 0)  # the time of the last commit
        missing = left_by_others(published, manifest)
    if published is not None:
        published.put_logs()
    return computed


def _with_estimated_constants(
    config: CacheConfig, data: Dataset, teacher: Teacher, wanted: Manifest, ranks: Ranks
) -> tuple[Teacher, Manifest]:
    """The teacher with the basis and ranges that rank 0 estimates for it, and the manifest with their error."""
    estimated: list = [None]

    def on_first_rank() -> None:
        features = teacher.features
        sample = sample_maps(config, data, teacher, ranks, features.sample)
        constants = estimate_constants(sample, features.codec, features.dims, features.energy, features.rotate)
        estimated[0] = constants, encoding_error(sample, constants, features.codec)

    ranks.run_on_first(on_first_rank)
    constants, error = ranks.gather(estimated[0])[0]
    lost_digest = wanted.identity.targets["features"].get("constants_sha256")
    teacher, wanted = with_constants(teacher, wanted, constants)
    if lost_digest not in (None, wanted.identity.targets["features"]["constants_sha256"]):
        raise ReskdError(f"{config.output}: the basis or the ranges of its features are lost, and a new estimate differs from "
                         f"them (the cache has grown, or this machine computes differently): restore its folders "
                         f"{', '.join(constants)} from a copy, or set targets.features.basis to a cache with the same "
                         f"constants")  # fmt: skip
    return teacher, replace(wanted, notes={"features": error})


def _report(
    config: CacheConfig,
    data: Dataset,
    teacher: Teacher,
    manifest: Manifest,
    computed: int,
    started: float,
    verify: int,
    published: PublishedCache | None,
) -> dict:
    output = published.url if published else config.output
    reader = CacheReader(output, tuple(manifest.identity.targets))
    top1 = teacher_accuracy(data, manifest, reader)
    result = {
        "clip_views": computed,
        "seconds": time.perf_counter() - started,
        "bytes": published.size(manifest) if published else total_bytes(config.output),
        "quarantined": sum(map(len, manifest.quarantine.values())),
        "top1": top1,
        "verified": verify_targets(data, manifest, reader, teacher, verify) if verify else None,
        "teacher_time": manifest.notes.get(NOTE),
    }
    console.print(
        f"{output}: {manifest.views} views of {sum(e.clips for e in data.shards)} clips, "
        f"{result['bytes'] / 1e6:.1f} MB, {result['quarantined']} quarantined; computed {computed} clip·views in "
        f"{result['seconds']:.1f} s" + ("" if top1 is None else f"; the teacher's top-1 on its views: {top1:.2f} %")
    )
    if (teacher_time := teacher_time_of(config.output, manifest.notes)) is not None:
        console.print(str(teacher_time), highlight=False)
    if "features" in manifest.notes:
        console.print(f"features, {describe_error(manifest.notes['features'])}", highlight=False)
    return result
