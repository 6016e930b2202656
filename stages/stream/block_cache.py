"""Reads the clips of a data set in a store through blocks in a local folder, which one process a node fills.

block_plan.py says what to fetch and what to delete for each micro-batch. Here a thread of the node's first rank does it,
ahead of the training: several blocks at a time, and a block is deleted only after the last micro-batch before that uses it
has come out of the decoding processes. Every rank notes in a file how many of its micro-batches have come. So the blocks of
a micro-batch stay until it is done, and what is fetched is exactly what the plan says.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache.errors import ReskdError
from stages.config.sizes import format_size
from stages.runtime.bounded_pool import bounded_pool
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.shards.local_blocks import LocalBlocks
from stages.stream.block_plan import NOBODY, Step, plan_blocks
from stages.stream.block_sizes import BlockSizes

REQUESTS = 16  # at a time
IN_FLIGHT = 256 << 20  # bytes of the blocks that are being fetched; a larger block comes alone
PROGRESS = "progress"  # file: for each rank of this node, the micro-batches that have come, 8 bytes each
POLL = 0.005  # seconds between two looks at the progress

# The name of each epoch, and the blocks of the micro-batches of this node, [M,B]. Without a name: it will be read later,
# not in this run; it says what is worth keeping.
Epochs = Iterator[tuple[str | None, np.ndarray]]


class _Stopped(Exception):
    """The reader needs no more blocks."""


@dataclass
class Traffic:
    """What an epoch needed. `optimum`: bytes that the plan fetches, which is a simulation of the best rule."""

    name: str
    end: int  # number of the micro-batch after its last one
    blocks: int  # different ones
    misses: int = 0
    optimum: int = 0
    fetched: int = 0

    def __str__(self) -> str:
        there = 100 * max(0, 1 - self.misses / self.blocks)
        return (f"{self.name}: {there:.1f} % of {self.blocks} blocks were here, {format_size(self.fetched)} fetched "
                f"(simulated optimum: {format_size(self.optimum)})")  # fmt: skip


class Progress:
    """How many of its micro-batches each rank of this node has got. Micro-batch n of the node is one of rank n % ranks."""

    def __init__(self, folder: Path, ranks: int):
        self.file, self.ranks = os.open(folder / PROGRESS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), ranks

    def clear(self) -> None:
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, bytes(8 * self.ranks), 0)

    def note(self, rank: int, count: int) -> None:
        os.pwrite(self.file, struct.pack("<q", count), 8 * rank)

    def is_done(self, number: int) -> bool:
        (count,) = struct.unpack("<q", os.pread(self.file, 8, 8 * (number % self.ranks)))
        return count > number // self.ranks

    def close(self) -> None:
        os.close(self.file)


@dataclass
class Filler:
    """The thread that carries out the plan. `there`: block -> bytes of what an earlier run has left."""

    data: Dataset
    local: LocalBlocks
    progress: Progress
    budget: int
    there: dict[int, int]
    traffic: list[Traffic] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    counting: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None

    def start(self, epochs: Epochs) -> None:
        self.thread = threading.Thread(target=self._run, args=(epochs,), name="fetch-blocks", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Waits for the requests at work, each of which has its limit of time."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join()

    def _run(self, epochs: Epochs) -> None:
        try:
            with ThreadPoolExecutor(REQUESTS, "read-rows") as rows, bounded_pool(REQUESTS, IN_FLIGHT) as run:
                sizes = BlockSizes(self.data, rows)
                for step in plan_blocks(self._expected(epochs, sizes), sizes, self.budget, self.there):
                    if step.epoch == len(self.traffic):
                        break
                    self._carry_out(step, sizes, run)
        except _Stopped:
            pass
        except ReskdError as error:
            self.local.fail(error)
        except BaseException as error:
            if not threading.main_thread().is_alive():  # this program ends, and threads can start no work any more
                return
            self.local.fail(ReskdError(f"{self.local.folder}: blocks can't be fetched any more: {error!r}"))
            raise

    def _expected(self, epochs: Epochs, sizes: BlockSizes) -> Iterator[np.ndarray]:
        end = 0
        for name, blocks in epochs:
            if name is not None:
                end += len(blocks)
                self.traffic.append(Traffic(name, end, len(np.unique(blocks))))
                sizes.expect(blocks)
            yield blocks

    def _carry_out(self, step: Step, sizes: BlockSizes, run: Callable) -> None:
        for block, last_use in step.evict:
            while last_use != NOBODY and not self.progress.is_done(last_use):
                self._check_stop()
                time.sleep(POLL)
            self._file(block, sizes).unlink(missing_ok=True)
        traffic = self.traffic[step.epoch]
        for block in step.fetch:
            self._check_stop()
            traffic.misses += 1
            traffic.optimum += sizes(block)
            run(sizes(block), lambda block=block: self._fetch(block, sizes, traffic))

    def _fetch(self, block: int, sizes: BlockSizes, traffic: Traffic) -> None:
        try:
            self._check_stop()
            content = self.data.fetch_block(*sizes.place(block))
            self.local.write(self._file(block, sizes), content)
            with self.counting:
                traffic.fetched += len(content)
        except ReskdError as error:  # said at once: the plan may be waiting for micro-batches that need this block
            self.local.fail(error)
            raise

    def _file(self, block: int, sizes: BlockSizes) -> Path:
        shard, number = sizes.place(block)
        return Path(self.local.block_file(self.data, shard, number))

    def _check_stop(self) -> None:
        if self.stopping.is_set():
            raise _Stopped


def report(traffic: Sequence[Traffic], done: int, told: int) -> int:
    """Print what the epochs needed that have ended when `done` micro-batches of the node are done. `told`: of how many that
    was printed before. Returns of how many it is now."""
    while told < len(traffic) and traffic[told].end <= done:
        console.print(str(traffic[told]), highlight=False, markup=False)
        told += 1
    return told
