"""Loading: the number of decoding processes, batches in row order, errors that workers return as values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from cache.errors import ReskdError
from stages.runtime.distributed import Ranks, cores
from stages.shards.dataset import Dataset
from stages.stream.batch import Batch
from stages.stream.block_cache import Epochs
from stages.stream.block_sizes import blocks_of_rows
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.local_folder import budget_of, in_store, read_through_folder
from stages.stream.worker_pool import make_batches


def raise_errors(batches: Iterable[Batch | ReskdError]) -> Iterator[Batch]:
    """Yield the batches; raise an error that a worker returned as a value."""
    for batch in batches:
        if isinstance(batch, ReskdError):
            raise batch
        yield batch


def decoding_workers(loader: LoaderConfig) -> int:
    """The number of decoding processes of a rank: `loader.workers`, by default one a core and at most 16."""
    return min(16, cores()) if loader.workers is None else loader.workers


def replaying_workers(loader: LoaderConfig, streams: int, world: int) -> int:
    """The number of decoding processes of each of `world` ranks for a run that replays a cache: at most `decoding_workers`.

    A process keeps the blocks of its streams in memory. All together keep lcm(streams, world * workers) times a window of
    blocks, so 10 workers may keep five times what 8 keep. Of the numbers with the least blocks, the largest is taken.
    """
    most = decoding_workers(loader)
    return max(range(1, most + 1), key=lambda n: (-math.lcm(streams, world * n), n)) if most else 0


def batches_in_order(
    clips: ClipDataset, loader: LoaderConfig, batch_size: int, ranks: Ranks, budget: int | None = None
) -> Iterable[Batch]:
    """Every usable row of the data set once, in order, in all views of the policy, which has no random jitter.

    A batch holds all views of its rows. It has as many rows as fit `batch_size` views, at least one. Rank r of W takes
    the batches r, r+W, …; none is padded or repeated. A worker holds `loader.prefetch` batches of uint8 values: one with
    30 views of 32 frames at 224 px has 144 MB. `budget`: bytes of `loader.local` that videos in a store may take; None: all.
    """
    views = clips.policy.views
    rows = [(s, int(r)) for s, usable in enumerate(clips.data.usable_rows()) for r in usable]
    step = max(1, batch_size // views)
    starts = range(0, len(rows), step)[ranks.rank :: ranks.world]
    batches = [[(s, r, v) for s, r in rows[i : i + step] for v in range(views)] for i in starts]
    workers = min(decoding_workers(loader), len(batches))
    pin = ranks.device.type == "cuda"

    def make(read: ClipDataset) -> Iterator[Batch]:
        return make_batches(read.fetcher, batches, workers, loader, data=clips.data, pin=pin)

    if not (in_store(clips.data) and clips.reads_videos):
        return make(clips)
    node = _node_passes(clips.data, np.array(rows), step, ranks)
    return read_through_folder(clips, make, node, loader.local, budget or budget_of(loader.local), ranks)


def _node_passes(data: Dataset, rows: np.ndarray, step: int, ranks: Ranks) -> Epochs:
    """The blocks that all ranks of this machine read in a pass over `rows`, [N,2] of shard and row, `step` a batch.

    A second pass, which is not read, says what a later one will need first: so this stays in the folder.
    """
    starts = np.arange(0, len(rows), step)
    node = ranks.of_machine
    of_node = (starts // step) % ranks.world
    starts = starts[(of_node >= node.start) & (of_node < node.stop)]
    places = np.minimum(starts[:, None] + np.arange(step), len(rows) - 1)  # the last batch may repeat its last row
    blocks = blocks_of_rows(data, rows[places, 0], rows[places, 1])
    yield str(data.base), blocks
    yield None, blocks
