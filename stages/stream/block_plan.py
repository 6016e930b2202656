"""Which blocks of a data set a node fetches and gives up, micro-batch by micro-batch. A pure function of the order.

The order of a run is known, so the next use of every block is, too. When the budget is full, the block whose next use is
furthest away goes (Belady's rule): no other rule fetches less from the same start, for blocks of one size. The least
recently used block would be the wrong one: over epochs that are longer than the budget, all would be fetched again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np

from cache.errors import ReskdError

NEVER = 1 << 62  # the next use of a block that isn't used in this epoch or in the next one
NOBODY = -1  # the last use of a block that this run has not used


@dataclass(frozen=True)
class Step:
    """What has to happen before micro-batch `number` can be read. Micro-batches count over the epochs.

    `evict`: each block beside the micro-batch that used it last, which must be done before the block may go.
    """

    number: int
    epoch: int  # counts from 0, the first one of the plan
    fetch: tuple[int, ...]
    evict: tuple[tuple[int, int], ...]


def plan_blocks(
    epochs: Iterable[np.ndarray], size_of: Callable[[int], int], budget: int, there: Mapping[int, int]
) -> Iterator[Step]:
    """One Step for each micro-batch. Looks at an epoch and the one after it; earlier and later ones take no memory.

    epochs: for each epoch the blocks of its micro-batches, integers [M,B]; a block may occur several times.
    size_of: bytes of a block; asked when the block is fetched.
    budget: bytes of the blocks that are there at any time, those of the micro-batch included.
    there: the blocks that are there at the start, with their bytes.

    Raises ReskdError if the blocks of one micro-batch don't fit into the budget.
    """
    folder, base = _Folder(budget), 0
    for epoch, (blocks, after) in enumerate(pairwise(chain(epochs, [None]))):
        later = {} if after is None else _first_uses(after, base + len(blocks))
        if epoch == 0:
            first = _first_uses(blocks, base)
            for block, size in there.items():
                folder.put(block, size, NOBODY, first.get(block, later.get(block, NEVER)))
        else:
            folder.look_further(later)
        starts, used, next_uses = _uses(blocks)
        for i in range(len(blocks)):
            span = slice(starts[i], starts[i + 1])
            nexts = {
                block: base + use if use >= 0 else later.get(block, NEVER)
                for block, use in zip(used[span].tolist(), next_uses[span].tolist(), strict=True)
            }
            yield folder.step(base + i, epoch, nexts, size_of)
        base += len(blocks)


@dataclass
class _Folder:
    """The blocks that are there: block -> bytes, last use, next use. `heap`: (-next use, block), with outdated entries."""

    budget: int
    bytes: int = 0
    size: dict[int, int] = field(default_factory=dict)
    last_use: dict[int, int] = field(default_factory=dict)
    next_use: dict[int, int] = field(default_factory=dict)
    heap: list[tuple[int, int]] = field(default_factory=list)

    def put(self, block: int, size: int, last_use: int, next_use: int) -> None:
        if block not in self.size:
            self.bytes += size
            self.size[block] = size
        self.last_use[block], self.next_use[block] = last_use, next_use
        heapq.heappush(self.heap, (-next_use, block))
        if len(self.heap) > 2 * len(self.size) + 1000:
            self.heap = [(-use, b) for b, use in self.next_use.items()]
            heapq.heapify(self.heap)

    def look_further(self, later: Mapping[int, int]) -> None:
        """Give blocks that seemed to be used never again their next uses, which a later epoch has."""
        for block, use in list(self.next_use.items()):
            if use == NEVER and block in later:
                self.put(block, self.size[block], self.last_use[block], later[block])

    def step(self, number: int, epoch: int, nexts: Mapping[int, int], size_of: Callable[[int], int]) -> Step:
        """Make room for the blocks of micro-batch `number`, and put them there. `nexts`: block -> its use after this one."""
        missing = {block: size_of(block) for block in nexts if block not in self.size}
        for block in nexts.keys() - missing.keys():
            self.next_use[block] = nexts[block]  # so that its entry in the heap is outdated: it can't go now
        evicted, needed = [], sum(missing.values())
        while self.bytes + needed > self.budget:
            evicted.append(self._give_up_furthest(nexts, needed))
        for block, use in nexts.items():
            self.put(block, missing.get(block, 0), number, use)
        return Step(number, epoch, tuple(missing), tuple(evicted))

    def _give_up_furthest(self, nexts: Mapping[int, int], needed: int) -> tuple[int, int]:
        while self.heap:
            use, block = heapq.heappop(self.heap)
            if self.next_use.get(block) == -use and block not in nexts:
                self.bytes -= self.size.pop(block)
                del self.next_use[block]
                return block, self.last_use.pop(block)
        raise ReskdError(
            f"loader.local.budget: one micro-batch takes {self.bytes + needed} bytes of blocks, more than the budget of "
            f"{self.budget}: raise it, or lower batch_size"
        )


def _uses(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different blocks of each micro-batch, one after another, where each micro-batch begins, [M+1], and for each of
    these uses the micro-batch of the block's next use in the epoch, or -1."""
    ordered = np.sort(blocks, axis=1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.concatenate([[0], np.cumsum(new.sum(1))])
    used = ordered[new]
    batch = np.repeat(np.arange(len(blocks), dtype=np.int32), np.diff(starts))
    by_block = np.argsort(used, kind="stable")
    again = used[by_block[1:]] == used[by_block[:-1]]
    next_uses = np.full(len(used), -1, np.int32)
    next_uses[by_block[:-1][again]] = batch[by_block[1:][again]]
    return starts, used, next_uses


def _first_uses(blocks: np.ndarray, base: int) -> dict[int, int]:
    """Block -> the micro-batch that uses it first. The epoch's first micro-batch is number `base`."""
    found, position = np.unique(blocks, return_index=True)
    return dict(zip(found.tolist(), (base + position // blocks.shape[1]).tolist(), strict=True))
