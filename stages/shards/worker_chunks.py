"""Several DataLoader workers stream shards together; their batches arrive in tar order.

Each of W workers streams all shards by webdataset and returns every W-th chunk of rows. DataLoader asks the workers in
turn. Reading a tar W times costs little compared with decoding.
"""

from collections.abc import Iterator, Sequence

from torch.utils.data import get_worker_info

from stages.shards.dataset import Dataset, Row

Chunk = tuple[int, int, list[tuple[Row, bytes]]]  # position in the list of shards, first row, rows and their videos


def chunks_of_worker(data: Dataset, shards: Sequence[str], size: int) -> Iterator[Chunk]:
    """This worker's chunks of up to `size` consecutive rows, shard after shard. `shards` may name a shard twice.

    Raises ReskdError if a tar differs from the index.
    """
    worker = get_worker_info()
    worker_number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
    first_chunk = 0  # number of the shard's first chunk
    for position, shard in enumerate(shards):

        def is_for_this_worker(r: int, first_chunk: int = first_chunk) -> bool:
            return (first_chunk + r // size) % workers == worker_number

        chunk: list[tuple[Row, bytes]] = []
        clips = data.entry(shard).clips
        for r, row, video in data.stream(shard, is_for_this_worker):
            chunk.append((row, video))
            if len(chunk) == size or r + 1 == clips:
                yield position, r + 1 - len(chunk), chunk
                chunk = []
        first_chunk += count_chunks(data, [shard], size)


def count_chunks(data: Dataset, shards: Sequence[str], size: int) -> int:
    """How many chunks all workers return together."""
    return sum(-(-data.entry(shard).clips // size) for shard in shards)
