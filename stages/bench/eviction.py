"""What a folder with a budget fetches, by two rules for what goes, simulated plainly over a whole run.

The optimum gives up the block whose next use is furthest away (Belady). It looks for it through the whole rest of the run,
so that it is slow, and shares nothing with stages/stream/block_plan.py, which it is compared with. LRU gives up the block
whose last use is longest ago. Blocks of the micro-batch at work stay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence

NEVER = 1 << 62


def optimum_bytes(batches: Sequence[set[int]], sizes: Sequence[int], budget: int) -> int:
    """Bytes fetched from an empty folder. `batches`: the blocks of each micro-batch; `sizes`: bytes of each block."""
    uses = defaultdict(list)
    for number, blocks in enumerate(batches):
        for block in blocks:
            uses[block].append(number)

    def next_use(block: int, number: int) -> int:
        position = bisect_right(uses[block], number)
        return uses[block][position] if position < len(uses[block]) else NEVER

    return _fetched(batches, sizes, budget, lambda there, number: max(there, key=lambda b: (next_use(b, number), -b)))


def lru_bytes(batches: Sequence[set[int]], sizes: Sequence[int], budget: int) -> int:
    """Bytes fetched from an empty folder, as `optimum_bytes`."""
    last_use: dict[int, int] = {}

    def oldest(there: set[int], number: int) -> int:
        return min(there, key=lambda b: (last_use[b], b))

    return _fetched(batches, sizes, budget, oldest, last_use)


def _fetched(
    batches: Sequence[set[int]],
    sizes: Sequence[int],
    budget: int,
    choose: Callable[[set[int], int], int],
    last_use: dict[int, int] | None = None,
) -> int:
    """`choose` gives the block that goes, of those that may, at a micro-batch. `last_use` is kept for it."""
    there: set[int] = set()
    held = fetched = 0
    for number, blocks in enumerate(batches):
        needed = sum(sizes[block] for block in blocks - there)
        while held + needed > budget:
            victim = choose(there - blocks, number)
            there.remove(victim)
            held -= sizes[victim]
        fetched += needed
        held += needed
        there |= blocks
        if last_use is not None:
            last_use.update(dict.fromkeys(blocks, number))
    return fetched
