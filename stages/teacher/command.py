"""The commands `cache-teacher`, `inspect-cache` and `verify-cache`."""

from pathlib import Path

import click

from stages.config.options import CONFIG, DRY_RUN, SET, with_options


@click.command("cache-teacher")
@CONFIG
@SET
@click.option("--views", type=int, help="V, stored views of every clip; can be raised later.")
@click.option("--verify", type=click.IntRange(1), default=None, help="Recompute so many random clip·views and compare.")
@click.option("--strict", is_flag=True, help="Stop at the first unreadable clip instead of quarantining it.")
@click.option("--budget", metavar="SIZE", help="With --dry-run: which encodings fit, such as 200GB, 1.5TB, 64GiB.")
@click.option("--student-grid", "grid", metavar="HxW", help="With --dry-run: price this grid of a student's map, too.")
@click.option(
    "--probe", type=click.IntRange(0), help="With --dry-run: clip·views that are measured, 0 none.  [default: 32]"
)
@DRY_RUN
def cache_teacher(config_file, overrides, views, verify, strict, dry_run, **planned):
    """Stage one: run the teacher once over V views of every clip.

    Killed and run again, it redoes only what was not committed. A rerun with another teacher, policy, decoder or
    shard list is refused; a rerun with more --views adds to the cache in place. Several processes (torchrun) share
    the shards.

    --dry-run is the size planner: from a short probe of the teacher on real clips, the hours it needs, and for each way
    of storing feature maps the bytes of a clip·view and of the whole cache, what it keeps, and how to --set it. Where
    nothing fits into --budget, it says what the smallest takes.
    """
    from stages.config.file import load_config
    from stages.teacher.cache_teacher import cache_teacher
    from stages.teacher.config import CacheConfig

    config = load_config(CacheConfig, config_file, with_options({"views": views}, overrides))
    cache_teacher(config, strict=strict, dry_run=dry_run, verify=verify or 0, **planned)


@click.command("inspect-cache")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="The data set that it was made of: the teacher's accuracy."
)
@click.option("--clip", metavar="KEY", help="Views and top-5 of this clip; SHARD/KEY where two shards have the key.")
@click.option("--png", type=click.Path(path_type=Path), help="With --clip and --data: a picture of the clip's views.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="All figures in this file, too.")
def inspect_cache(path, **options):
    """Show what the cache in PATH is, and what it takes.

    Teacher, decoder, view policy and targets (what it may not be mixed with); views planned and finished; bytes on disk
    by array and for each clip·view; the encoding's error on clips that it wasn't fitted to; clips in quarantine. With
    --data, the teacher's top-1 on its stored views, as a student will see them.

    \b
    pipeline.py inspect-cache runs/demo/cache.zarr
    pipeline.py inspect-cache runs/demo/cache.zarr --data runs/demo/data/train --clip KEY --png clip.png
    """
    from stages.teacher.inspect_cache import inspect_cache

    inspect_cache(path, **options)


@click.command("verify-cache")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Hold its keys and frames against this data set.")
@click.option("--recompute", type=click.IntRange(1), help="Let the teacher answer so many random clip·views again.")
@click.option("--teacher", type=click.Path(path_type=Path), help="Its checkpoint, for --recompute.")
@click.option("--repair", "mend", is_flag=True, help="Delete damaged groups and stray files, and nothing else.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="cache-teacher's: names data and teacher."
)
@SET
def verify_cache(path, recompute, config_file, overrides, **options):
    """Check every byte of the cache in PATH; exit status 0: it is whole, 1: it is not.

    Each shard's group against the manifest and its own list of files (size, sha256), the arrays' metadata, the keys, and
    whether every clip's targets are there and finite. Prints what is wrong, and a plan: which shards to redo, because
    of what.

    --repair deletes the groups of damaged shards, and the manifest calls the cache unfinished until cache-teacher, run
    again with the config that made it, has redone them; whole shards stay as they are, byte for byte. (The exit status
    is 1 then, too.) A manifest or data set that doesn't fit is reported, never repaired.
    """
    from stages.config.file import load_config
    from stages.teacher.config import CacheConfig
    from stages.teacher.verify_cache import verify_cache

    config = load_config(CacheConfig, config_file, overrides) if config_file or overrides else None
    if verify_cache(path, recompute=recompute or 0, config=config, **options)["problems"]:
        raise SystemExit(1)
