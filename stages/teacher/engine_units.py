"""Stage one on an engine: the driver hands out shards, actors compute what is missing of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch

from cache.create import check_cache
from cache.errors import ReskdError
from cache.group import load_manifest
from cache.manifest import Manifest
from cache.teacher_time import open_time_log
from stages.engine.actor import Tell, Units
from stages.engine.check_paths import check_paths, marked, paths_in
from stages.engine.engine import Engine, Job
from stages.engine.run_units import run_units
from stages.remote.published_cache import PublishedCache
from stages.remote.url_path import Location
from stages.runtime.distributed import join_ranks
from stages.shards.dataset import Dataset
from stages.stream.all_views import AllViews, EncodedClips, ShardWork, ViewBatch
from stages.stream.loading import decoding_workers, raise_errors
from stages.stream.read_ahead import read_ahead
from stages.stream.worker_pool import make_batches
from stages.teacher.cache_shard import cache_shard
from stages.teacher.config import CacheConfig
from stages.teacher.forward import FORWARDS_ON_CPU, async_forward
from stages.teacher.identity import in_todays_names
from stages.teacher.load_teacher import load_teacher
from stages.teacher.plan import missing_of_shards
from stages.teacher.target_writer import target_writer
from stages.teacher.teacher import Teacher
from stages.teacher.url_output import claim_in, copy_of_actor
from stages.teacher.view_batches import fitting_loader

# How long a reader waits for the next shard before it passes NOTHING on, so that the batches before it come out.
SOON, LATER = 0.01, 0.25  # seconds: at first, and after MANY times
MANY = 100
NOTHING = None


def compute_on_engine(
    engine: Engine,
    config: CacheConfig,
    data: Dataset,
    manifest: Manifest,
    strict: bool,
    started: float,
    published: PublishedCache | None = None,
) -> int:
    """Compute what the cache lacks, on the engine's actors. Returns the clip·views computed.

    `started`: when the run started, by `time.perf_counter`. `published`: the cache in a store of which `config.output` is the
    driver's folder; each actor has one of its own. Raises ReskdError at the end if shards were given up.
    """
    open_time_log(config.output, 0, started)(0.0, 0)  # the plan's time
    if published is not None:
        published.put_logs()
    with on_engine(config, data, manifest, strict, published) as job:
        outcome = run_units(engine, job)
    if outcome.failed:
        raise ReskdError(f"{config.output}: {len(outcome.failed)} of {len(data.shards)} shards are missing:\n"
                         + "\n".join(outcome.failed.values())
                         + "\nwhat is finished stays: mend or leave out what is at fault, and run it again")  # fmt: skip
    return sum(outcome.results.values())


@contextmanager
def on_engine(
    config: CacheConfig,
    data: Dataset,
    manifest: Manifest,
    strict: bool = False,
    published: PublishedCache | None = None,
) -> Iterator[Job]:
    """The job of computing what the cache lacks: a unit is a shard. It can be done inside the context."""
    size: Counter = Counter()  # shard -> missing clip·views
    for work in missing_of_shards(config.output, manifest, data.shards):
        size[work.shard] += data.entry(work.shard).clips * len(work.views)
    inputs = tuple(paths_in((config.data, config.teacher, config.targets)))
    output = config.output if published is None else published.url
    config = config.model_copy(update={"output": output})
    writer = None if published is None else published.writer
    with marked(output) as mark:
        yield Job(
            work=partial(_compute, config, writer, data, strict, inputs, mark),
            units=dict.fromkeys(size),
            size=size,
            title="cache-teacher",
            progress_unit="clip·views",
            output=output,
            inputs=(*inputs, output),
            threads=torch.get_num_threads(),
            cores=torch.get_num_threads() * FORWARDS_ON_CPU,
            strict=strict,
        )


def _compute(
    config: CacheConfig,
    writer: str | None,
    data: Dataset,
    strict: bool,
    inputs: tuple[Location, ...],
    mark: Location,
    units: Units,
    tell: Tell,
) -> None:
    """What an actor does: load the teacher once, and stream through the shards that it is given.

    `writer`: names the writers of this run, for an output at a URL.
    """
    started = time.perf_counter()
    check_paths(inputs, mark)
    data.check_files()
    with join_ranks() as ranks, copy_of_actor(config, writer) as (config, published):
        teacher, wanted = load_teacher(config, data, ranks.device)
        check_cache(config.output, wanted, in_todays_names)  # the driver's machine may be another one
        manifest = load_manifest(config.output)
        record = open_time_log(config.output, ranks.rank if published is None else published.rank, started)
        left: Counter = Counter()  # shard -> its parts that aren't committed
        computed: Counter = Counter()  # shard -> clip·views

        def committed(shard: str) -> None:
            record(0.0, 0)  # the time of the commit
            left[shard] -= 1
            if not left[shard]:
                tell.done(shard, computed[shard])

        def missing(shard: str) -> list[ShardWork]:
            if published is not None:
                published.pull_groups([shard])
            parts = missing_of_shards(config.output, manifest, [data.entry(shard)])
            if not all(
                map(claim_in(published, manifest), parts)
            ):  # another machine writes it; the end of the run says so
                parts = []
            if not parts:  # an actor that died has committed it, and could not say so
                tell.done(shard, 0)
            left[shard] = len(parts)
            return parts

        work = _waiting(units, missing)
        with (
            async_forward(teacher, manifest.identity.targets) as forward,
            target_writer(config.output, manifest, record, published) as (targets, submit),
        ):
            targets.on_commit = committed
            batches = _batches(config, data, work, teacher, manifest, strict, ranks.device.type == "cuda", tell)
            for part, of_part in groupby(batches, key=lambda batch: batch.work):
                tell.begun(part.shard)
                keys = [row.key for row in data.rows(part.shard)]
                counted = _counted(of_part, computed)
                cache_shard(part, keys, forward, counted, targets, submit)


def _counted(batches: Iterator[ViewBatch], computed: Counter) -> Iterator[ViewBatch]:
    """The batches. Their clip·views are added to those of their shard, as `cache_shard` counts them."""
    for batch in batches:
        computed[batch.work.shard] += (len(batch.frames) - len(batch.quarantine)) * len(batch.work.views)
        yield batch


def _waiting(units: Units, missing: Callable[[str], list[ShardWork]]) -> Iterator[ShardWork | None]:
    """The parts of the shards that come. While none comes, NOTHING now and then."""
    nothing = 0
    while True:
        try:
            unit = units.take(SOON if nothing < MANY else LATER)
        except TimeoutError:
            nothing += 1
            yield NOTHING
            continue
        if unit is None:
            return
        nothing = 0
        yield from missing(unit[0])


def _batches(
    config: CacheConfig,
    data: Dataset,
    work: Iterator[ShardWork | None],
    teacher: Teacher,
    manifest: Manifest,
    strict: bool,
    pin: bool,
    tell: Tell,
) -> Iterator[ViewBatch]:
    """The batches of all parts, decoded in workers."""
    workers = decoding_workers(config.loader)
    most = [ShardWork(entry.name, range(manifest.views)) for entry in data.shards]
    loader = fitting_loader(config, data, most, teacher, workers)
    views = AllViews(data, (), config.policy, teacher.size, teacher.batch_size)

    def read() -> Iterator[Any]:
        for part in work:
            if part is NOTHING:
                yield NOTHING
            else:
                yield from AllViews(data, [part], config.policy, teacher.size, teacher.batch_size).read()

    for batch in raise_errors(
        make_batches(partial(_maker, views), read_ahead(read()), workers, loader, data=data, pin=pin)
    ):
        if batch is NOTHING:
            continue
        for key, reason in batch.quarantine.items() if strict else ():
            raise ReskdError(f"{data.path}: shard {batch.work.shard}, clip {key!r}: {reason} (--strict)")
        yield batch
        tell.amount(batch.work.shard, batch.frames.shape[0] * batch.frames.shape[1])


def _maker(views: AllViews, first: int, step: int) -> Callable[[EncodedClips | ReskdError | None], Any]:
    """What a decoding process does with an item: see `make_batches`."""
    return lambda clips: NOTHING if clips is NOTHING else views.make(clips)
