"""The local folder for blocks of data sets in stores: its place, its budget, who uses it, and reading clips through it."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cache.errors import ReskdError
from stages.config.sizes import format_size, parse_size
from stages.remote.outputs import make_private, user_folder
from stages.remote.url_path import UrlPath
from stages.runtime.distributed import Ranks, ranks_of_machine
from stages.shards.dataset import Dataset
from stages.shards.local_blocks import LocalBlocks, block_count
from stages.stream.batch import Batch
from stages.stream.block_cache import Epochs, Filler, Progress, report
from stages.stream.block_sizes import block_starts
from stages.stream.clips import ClipDataset
from stages.stream.config import LocalConfig

RUNS = 100  # at the same time, with the same data and folder


def in_store(data: Dataset) -> bool:
    return isinstance(data.base, UrlPath)


def folder_of(local: LocalConfig) -> Path:
    return local.path or user_folder("reskd-blocks")


def budget_of(local: LocalConfig) -> int:
    """Bytes that all blocks may take; by default half of what is free or taken by blocks already.

    An engine's actors on one machine each have a share of it.
    """
    if local.budget is not None:
        return parse_size(local.budget, "loader.local.budget")
    folder, there = folder_of(local), 0
    for file in folder.glob("*/*.*[0-9]"):
        with suppress(FileNotFoundError):  # another run has just deleted it
            there += file.stat().st_size
    return (_free(folder) + there) // 2 // ranks_of_machine()


def shares(budget: int, train: Dataset | None, val: Dataset | None) -> tuple[int, int]:
    """The budgets of training and of validation, which has at most a quarter. None: not read from a store."""
    if train is None or val is None:
        return budget, budget
    part = min(sum(entry.bytes for entry in val.shards), budget // 4)
    return budget - part, part


def check_budget(data: Dataset, streams: int, window: int, budget: int, ranks: Ranks) -> None:
    """Raise ReskdError for a budget below the blocks that are in use at once: a window and one more of each stream.

    `streams`: of all ranks; counted are those that this machine's ranks read. The bytes of the blocks are estimated by the
    sizes of the tars, the largest first.
    """
    shared = math.gcd(streams, ranks.world)
    read = streams // shared * min(shared, len(ranks.of_machine))
    blocks = [(entry.bytes / (count := block_count(data, entry.name)), count) for entry in data.shards]
    sizes = np.repeat([size for size, _ in blocks], [count for _, count in blocks])
    number = min(read * (window + 1), len(sizes))
    needed = int(np.sort(sizes)[::-1][:number].sum())
    if budget < needed:
        raise ReskdError(
            f"loader.local.budget: {format_size(budget)} for clips of {data.base} are less than the {format_size(needed)} that "
            f"are in use at once ({number} blocks: {read} streams × ({window} + 1) blocks of 64 rows): raise it, give "
            "loader.local.path a folder with more room, or lower loader.window or loader.streams (both change the order)"
        )


@dataclass
class _Claim:
    """A folder of blocks of a data set that no other process uses now."""

    folder: Path
    lock: FileLock


def _claim(root: Path, data: Dataset) -> _Claim:
    """Each run has a folder of its own, so that none deletes the blocks of another one. One that is free is used again."""
    name = hashlib.sha256(str(data.path).encode(errors="replace")).hexdigest()[:16]
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(RUNS):
            folder = root / (f"{name}-{number}" if number else name)
            lock = FileLock(root / f".{folder.name}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                folder.mkdir(exist_ok=True, mode=0o700)
                return _Claim(folder, lock)
    except OSError as error:
        raise ReskdError(
            f"{root}: can't be written ({error.strerror or error}): give another loader.local.path"
        ) from error
    raise ReskdError(f"{root}: {RUNS} runs read {data.path} through it: give another loader.local.path")


def _left_there(folder: Path, data: Dataset) -> dict[int, int]:
    """The blocks of the data set that an earlier run has left, with their bytes. Other files are deleted, but its rows."""
    starts = block_starts(data).tolist()
    first = {data.content_name(entry.name): starts[i] for i, entry in enumerate(data.shards)}
    rows = {f"{data.rows_digest(entry.name)}.rows.json" for entry in data.shards}
    found = {}
    for file in folder.iterdir():
        match = re.fullmatch(r"([0-9a-f]{32})\.(\d+)", file.name)
        if match and match[1] in first:
            found[first[match[1]] + int(match[2])] = file.stat().st_size
        elif file.name not in rows:
            file.unlink()
    return found


def _check_room(local: LocalConfig, data: Dataset, budget: int, there: int) -> None:
    """Raise ReskdError if the disk will be full before the budget is."""
    needed, free = min(budget, sum(entry.bytes for entry in data.shards)) - there, _free(folder_of(local))
    if needed > free:
        raise ReskdError(f"{folder_of(local)}: {format_size(free)} are free, and blocks of {data.base} may take "
                         f"{format_size(needed)}: lower loader.local.budget, or give loader.local.path a folder with more "
                         "room")  # fmt: skip


def _free(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    ).free


def read_through_folder(
    clips: ClipDataset,
    make: Callable[[ClipDataset], Iterator[Batch]],
    epochs: Epochs,
    local: LocalConfig,
    budget: int,
    ranks: Ranks,
) -> Iterator[Batch]:
    """The batches that `make` makes of the clips, whose videos come through a local folder. All ranks call it together.

    `epochs`: what all ranks of this node read, one micro-batch of each rank in turn. `budget`: bytes.
    """
    own, filler, claim, found = ranks.rank - ranks.of_machine.start, None, None, None
    if own == 0:
        try:
            if local.path is None:
                make_private(folder_of(local))
            claim = _claim(folder_of(local), clips.data)
            there = _left_there(claim.folder, clips.data)
            _check_room(local, clips.data, budget, sum(there.values()))
            found = LocalBlocks(claim.folder, os.getpid())
        except ReskdError as error:
            found = error
        except OSError as error:
            found = ReskdError(f"{error.filename}: {error.strerror}: give another loader.local.path")
    # Each rank takes the answer of its node's first one. An error of any is one of all, so that no rank waits.
    answers = ranks.gather(found)
    for answer in answers:
        if isinstance(answer, ReskdError):
            raise answer
    blocks = answers[ranks.rank - own]
    progress = Progress(blocks.folder, len(ranks.of_machine))
    if own == 0:
        progress.clear()
        filler = Filler(clips.data.with_local(blocks), blocks, progress, budget, there)
    ranks.barrier()
    return _batches(make(clips.with_local(blocks)), progress, own, filler, epochs, claim, ranks)


def _batches(
    batches: Iterator[Batch],
    progress: Progress,
    own: int,
    filler: Filler | None,
    epochs: Epochs,
    claim: _Claim | None,
    ranks: Ranks,
) -> Iterator[Batch]:
    """The batches; each is noted as done when it comes. What the epochs needed is printed by the first rank of all."""
    told = 0
    with ExitStack() as closing:  # the batches first
        closing.callback(progress.close)
        if claim:
            closing.callback(claim.lock.release)
        if filler:
            closing.callback(filler.stop)
            filler.start(epochs)
        closing.callback(batches.close)
        for count, batch in enumerate(batches, 1):
            progress.note(own, count)
            if filler and ranks.first:
                told = report(filler.traffic, count * progress.ranks, told)
            yield batch
