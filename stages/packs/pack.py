"""Stage 1b: store every clip's frames, or its stored views' pictures, as low-resolution JPEGs. Students then decode no video."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path

from rich.table import Table

from cache.errors import ReskdError
from stages.packs.config import PackConfig
from stages.packs.output import begin_pack, committer, made_in, print_small_clips
from stages.packs.plan import Plan, plan_pack
from stages.packs.writing import AllPictures, PackedClip
from stages.remote.outputs import total_bytes
from stages.remote.url_path import Location
from stages.runtime.distributed import Ranks, join_ranks
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.loading import decoding_workers, raise_errors
from stages.stream.pack_files import PackManifest, finish_pack, read_committed_shards
from stages.stream.rules import check_rules
from stages.stream.worker_pool import make_batches


def pack(config: PackConfig, *, dry_run: bool = False) -> dict:
    """Pack the shards that aren't committed. `dry_run`: print the plan, write nothing.

    Returns, on the first rank, "clips" (packed by this call on this rank), "frames" (pictures of the pack), "height" (px),
    "quality", "psnr" (dB, of a sample), "bytes" (of the pack; with `dry_run` an estimate of the missing shards), "small"
    (number of clips smaller than the height), and without `dry_run` "quarantined" (clips) and "seconds". Other ranks
    return "clips" alone.

    Raises ReskdError for a cache that is not finished or has other shards, a height above that of every clip, a PSNR that
    no quality reaches, an output folder with other content, and a full disk.
    """
    started = time.perf_counter()
    data = open_dataset(config.data)
    check_rules(data)
    data.check_files()
    with join_ranks(timeout=timedelta(days=7)) as ranks:  # shards differ: the first rank to finish waits for the last
        if dry_run:
            return _print_plan(config, data, plan_pack(config, data))
        with made_in(config.output, ranks) as folder, _disk_errors(config.output, folder, data):
            plans: list[Plan] = []

            def begin() -> None:
                plans.append(plan_pack(config, data))
                begin_pack(config.output, folder, plans[0])

            ranks.run_on_first(begin)
            plan = ranks.gather(plans[0] if plans else None)[0]
            packed_clips = _pack_shards(config, folder, data, plan, ranks)
            ranks.barrier()
            if not ranks.first:
                return {"clips": packed_clips}
            manifest = finish_pack(config.output, plan.identity)
            return _print_result(config, data, plan, manifest, packed_clips, started)


def _pack_shards(config: PackConfig, folder: Path, data: Dataset, plan: Plan, ranks: Ranks) -> int:
    """Pack this rank's shards, every W-th of the missing ones; returns the number of their clips."""
    shards = plan.missing[ranks.rank :: ranks.world]
    frames = AllPictures(data, shards, plan.wanted, plan.identity.height, plan.identity.quality)
    workers = min(decoding_workers(config.loader), len(frames))
    chunks = make_batches(frames.fetcher, range(len(frames)), workers, config.loader, data=data)
    total = sum(data.entry(shard).clips for shard in shards)
    committing, progress = (
        committer(config.output, folder, plan.identity, shards),
        progress_bar("clips", disable=not ranks.first),
    )
    with committing as commit, progress as bar:
        task, started = bar.add_task("pack", total=total, rate=0.0, note=""), time.perf_counter()

        def clips_with_progress() -> Iterator[PackedClip]:
            for chunk in raise_errors(chunks):
                bar.advance(task, len(chunk))
                bar.update(task, rate=bar.tasks[0].completed / (time.perf_counter() - started))
                yield from chunk

        clips = clips_with_progress()
        for shard in shards:
            bar.update(task, note=shard)
            shard_clips = islice(clips, data.entry(shard).clips)  # reads no further: the next shard may raise an error
            commit(shard, map(_quarantine_reporter(shard), shard_clips))
    return total


def _quarantine_reporter(shard: str) -> Callable[[PackedClip], PackedClip]:
    """A function that returns its clip, and prints the clip's error, if any."""

    def report(clip: PackedClip) -> PackedClip:
        if clip.error is not None:
            console.print(f"[yellow]quarantined[/] {shard}/{clip.key}: {clip.error}", highlight=False)
        return clip

    return report


@contextmanager
def _disk_errors(output: Location, folder: Path, data: Dataset) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shards = read_committed_shards(output, (entry.name for entry in data.shards)).values()
        packed = sum(shard is not None for shard in shards)
        elsewhere = "" if folder == output else ", or set TMPDIR to a folder on another disk"
        raise ReskdError(f"{error.filename or folder}: can't be written ({error.strerror or error}). {packed} of "
                         f"{len(data.shards)} shards are packed and stay: make room or correct the permissions{elsewhere}, and "
                         "run `pack` again, which continues") from error  # fmt: skip


def _print_plan(config: PackConfig, data: Dataset, plan: Plan) -> dict:
    result = _common_results(data, plan) | {"bytes": plan.bytes, "small": len(plan.small)}
    rows = {
        "output": config.output,
        "shards": f"{len(data.shards)}, {len(plan.missing)} of them missing",
        "clips": sum(e.clips for e in data.shards),
        "pictures a clip": f"{plan.frames / max(1, sum(map(len, data.usable_rows()))):.1f}",
        "height": f"{plan.identity.height} px",
        "quality": f"{plan.identity.quality}, {plan.psnr:.1f} dB on a sample",
        "bytes of the missing shards": f"about {plan.bytes / 1e6:.1f} MB, of {_source_bytes(data) / 1e6:.1f} MB of video",
    }
    table = Table(title="pack: what it would do", show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)
    print_small_clips(plan)
    return result


def _common_results(data: Dataset, plan: Plan) -> dict:
    identity = plan.identity
    return {
        "clips": 0,
        "frames": plan.frames,
        "height": identity.height,
        "quality": identity.quality,
        "psnr": plan.psnr,
    }


def _source_bytes(data: Dataset) -> int:
    return sum(entry.bytes for entry in data.shards)


def _print_result(config: PackConfig, data: Dataset, plan: Plan, manifest: PackManifest, packed_clips: int,
                  started: float) -> dict:  # fmt: skip
    size = total_bytes(config.output)
    result = _common_results(data, plan) | {
        "clips": packed_clips,
        "bytes": size,
        "quarantined": sum(map(len, manifest.quarantine.values())),
        "small": len(plan.small),
        "seconds": time.perf_counter() - started,
    }
    console.print(
        f"{config.output}: {plan.frames} pictures of {sum(e.clips for e in data.shards)} clips "
        f"at {plan.identity.height} px, quality "
        f"{result['quality']} ({plan.psnr:.1f} dB on a sample), {size / 1e6:.1f} MB ({size / _source_bytes(data):.2f} of the "
        f"videos'), {result['quarantined']} quarantined; packed {packed_clips} clips in {result['seconds']:.1f} s",
        highlight=False,
    )
    return result
