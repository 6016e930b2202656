"""The memory that a run's readers of a cache keep: what is predicted before training, and what they take."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from cache.reader import CacheReader
from cache.view import BLOCK
from stages.bench.figures import Figure
from stages.stream.order import Order

TARGETS = ("logits", "features")
RANKS, WORKERS = (1, 2), (1, 2, 3, 5)
STREAMS, WINDOW, BATCH = 8, 2, 16


def resident_figures(cache: Path, clips: int) -> list[Figure]:
    """Predicted ÷ measured for each number of ranks and workers, in an epoch over the cache's one shard of `clips` clips."""
    figures, shard = [], CacheReader(cache).manifest.identity.shards[0].name
    for ranks in RANKS:
        for workers in WORKERS:
            order = Order([np.arange(clips)], [shard], 0, BATCH, ranks, WINDOW, STREAMS, 2)
            readers = ranks * workers
            blocks = order.resident_blocks(readers)
            predicted = readers * CacheReader(cache, TARGETS, capacity_blocks=blocks).most_bytes()
            shares = [
                _batches(order, rank, ranks, worker, workers) for rank in range(ranks) for worker in range(workers)
            ]
            measured = sum(_in_a_process(cache, blocks, share) for share in shares)
            ratio = predicted / measured
            name = (
                f"resident memory, predicted ÷ measured, {ranks} ranks × {workers} workers ({predicted / 1e6:.0f} MB)"
            )
            figures.append(Figure(name, ratio, "", None, "0.8 to 1.2", 0.8 <= ratio <= 1.2))
    return figures


def _batches(order: Order, rank: int, ranks: int, worker: int, workers: int) -> list:
    """The batches of one worker of one rank."""
    return list(order.batches(0, 0, rank, ranks))[worker::workers]


def _in_a_process(cache: Path, blocks: int, batches: list) -> int:
    """`_memory_of_reader` in a process that has read nothing yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_memory_of_reader, cache, blocks, batches).result()


def _memory_of_reader(cache: Path, blocks: int, batches: list) -> int:
    """The bytes that a reader adds to its process at most, while it joins the batches."""
    reader, process, most = CacheReader(cache, TARGETS, capacity_blocks=blocks), psutil.Process(), 0
    shard = reader.manifest.identity.shards[0].name
    reader.view(shard, 0)  # opens the group, which the prediction leaves out
    before = process.memory_full_info().uss
    for batch in batches:
        for _, row, view in batch:
            reader.block(shard, view, row // BLOCK).features[row % BLOCK].copy()
        most = max(most, process.memory_full_info().uss - before)
    return most
