"""The commands `cache-teacher`, `inspect-cache` and `verify-cache`."""

import click

from stages.config.options import ANY_PATH, CONFIG, DRY_RUN, ENGINE, JSON, SET, LocalPath, json_option, with_options


@click.command("cache-teacher", short_help="Stage one: run the teacher once, store its targets.")
@CONFIG
@SET
@click.option("--views", type=int, help="V, stored views of every clip; can be raised later.")
@click.option(
    "--verify", type=click.IntRange(1), default=None, help="Recompute this number of random clip·views and compare."
)
@click.option("--strict", is_flag=True, help="Stop at the first unreadable clip instead of quarantining it.")
@click.option("--budget", metavar="SIZE", help="With --dry-run: show which encodings fit; such as 200GB, 1.5TB, 64GiB.")
@click.option("--student-grid", "grid", metavar="HxW", help="With --dry-run: also price this grid of a student's map.")
@click.option("--probe", type=click.IntRange(0), help="With --dry-run: clip·views to measure; 0: none.  [default: 32]")
@ENGINE
@DRY_RUN
@json_option
def cache_teacher(config_file, overrides, views, verify, strict, dry_run, engine, address, actors, **plan_options):
    """Stage one: run the teacher once over V views of every clip.

    After a kill, run it again: it redoes only what was not committed. It refuses a rerun with another teacher, policy,
    decoder or shard list. A rerun with more --views adds to the cache in place. Several processes (torchrun) share the
    shards. With --engine ray, the actors of a cluster take shards as they are free; one that dies is replaced.

    --dry-run is the size planner. It measures the teacher on a few real clips and shows the hours that it needs. For
    each way to store feature maps it shows the bytes of a clip·view and of the whole cache, what it keeps, and how to
    --set it. Where nothing fits into --budget, it says what the smallest takes.
    """
    from stages.config.file import load_config
    from stages.engine.engine import chosen_engine
    from stages.teacher.cache_teacher import cache_teacher
    from stages.teacher.config import CacheConfig

    options = {"strict": strict, "dry_run": dry_run, "engine": chosen_engine(engine, address, actors), **plan_options}
    config = load_config(CacheConfig, config_file, with_options({"views": views}, overrides))
    return cache_teacher(config, verify=verify or 0, **options)


@click.command("inspect-cache", short_help="Show the contents and the size of a cache.")
@click.argument("path", type=ANY_PATH)
@click.option("--data", type=ANY_PATH, help="The data set that it was made of; shows the teacher's accuracy.")
@click.option(
    "--clip", metavar="KEY", help="Show views and top-5 of this clip; SHARD/KEY where two shards have the key."
)
@click.option("--png", type=LocalPath(), help="With --clip and --data: draw the clip's views here.")
@json_option
def inspect_cache(path, **options):
    """Show the contents and the size of the cache in PATH.

    Shows the teacher, decoder, view policy and targets (a cache never mixes two of any of them), the planned and finished
    views, the bytes on disk by array and for each clip·view, the encoding's error on held-out clips, and the clips in
    quarantine. With --data, it shows the teacher's top-1 on the stored views.

    \b
    pipeline.py inspect-cache runs/demo/cache.zarr
    pipeline.py inspect-cache runs/demo/cache.zarr --data runs/demo/data/train --clip KEY --png clip.png
    """
    from stages.teacher.inspect_cache import inspect_cache

    return inspect_cache(path, **options)


@click.command("verify-cache", short_help="Check every byte of a cache.")
@click.argument("path", type=ANY_PATH)
@click.option("--data", type=ANY_PATH, help="Check its keys and frames against this data set.")
@click.option("--recompute", type=click.IntRange(1), help="Compute this number of random clip·views again.")
@click.option("--teacher", type=ANY_PATH, help="The cache's teacher, a checkpoint, for --recompute.")
@click.option("--repair", "repair_damage", is_flag=True, help="Delete damaged groups and stray files, nothing else.")
@click.option(
    "--config",
    "config_file",
    type=LocalPath(),
    help="cache-teacher's config, which names data and teacher.",
)
@SET
@JSON
def verify_cache(path, recompute, config_file, overrides, json_file, **options):
    """Check every byte of the cache in PATH; exit status 0: no problem, 1: problems.

    Compares each shard's group with the manifest and with the group's list of files (size, sha256). Checks the arrays'
    metadata, the keys, and that every clip has finite targets. Prints the problems, and which shards to redo because of
    them.

    --repair deletes the groups of damaged shards. The manifest then calls the cache unfinished until cache-teacher, run
    again with the same config, has redone these shards. Whole shards stay byte for byte. The exit status is 1 in this
    case, too. A manifest or data set that doesn't fit is reported, never repaired.
    """
    from stages.config.file import load_config
    from stages.config.json_result import json_result
    from stages.teacher.config import CacheConfig
    from stages.teacher.verify_cache import verify_cache

    config = load_config(CacheConfig, config_file, overrides) if config_file or overrides else None
    with json_result(json_file) as write:
        result = verify_cache(path, recompute=recompute or 0, config=config, **options)
        write(result)
    if result["problems"]:
        raise SystemExit(1)
