"""The blocks of a whole data set, counted through its shards, and their bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from cache.view import BLOCK
from stages.shards.dataset import Dataset
from stages.shards.local_blocks import block_count, block_span

AHEAD = 64  # shards whose rows are read before they are needed


def block_starts(data: Dataset) -> np.ndarray:
    """The number of each shard's first block, int64 [shards + 1]. The last value is the number of all blocks."""
    return np.cumsum([0, *(block_count(data, entry.name) for entry in data.shards)])


def blocks_of_rows(data: Dataset, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The blocks of rows, int32 of the same shape. `shards`: positions in the data set's list."""
    return (block_starts(data)[shards] + rows // BLOCK).astype(np.int32)


class BlockSizes:
    """`sizes(block)`: the bytes of a block. They follow from a shard's rows, which are read once, some shards ahead."""

    def __init__(self, data: Dataset, pool: ThreadPoolExecutor):
        self.data, self.pool, self.starts = data, pool, block_starts(data)
        self.known: dict[int, Sequence[int]] = {}
        self.coming: dict[int, Future] = {}
        self.expected: deque[int] = deque()

    def expect(self, blocks: np.ndarray) -> None:
        """These blocks are needed next, in this order."""
        shards, first = np.unique(np.searchsorted(self.starts, blocks.ravel(), "right") - 1, return_index=True)
        self.expected.extend(shards[np.argsort(first)].tolist())

    def place(self, block: int) -> tuple[str, int]:
        """The shard of a block, and the block's number in it."""
        shard = int(np.searchsorted(self.starts, block, "right")) - 1
        return self.data.shards[shard].name, int(block - self.starts[shard])

    def __call__(self, block: int) -> int:
        shard = int(np.searchsorted(self.starts, block, "right")) - 1
        if shard not in self.known:
            self._ask(shard)
            while self.expected and len(self.coming) < AHEAD:
                self._ask(self.expected.popleft())
            self.known[shard] = self.coming.pop(shard).result()
        return self.known[shard][block - self.starts[shard]]

    def _ask(self, shard: int) -> None:
        if shard not in self.known and shard not in self.coming:
            self.coming[shard] = self.pool.submit(self._sizes_of, self.data.shards[shard].name)

    def _sizes_of(self, shard: str) -> list[int]:
        spans = [block_span(self.data, shard, block) for block in range(block_count(self.data, shard))]
        return [stop - start for start, stop in spans]
