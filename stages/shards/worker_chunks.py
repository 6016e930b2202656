"""Shards streamed once by several DataLoader workers, whose batches arrive in tar order.

Each worker streams the shards by webdataset and works on every W-th chunk of rows; DataLoader serves the workers in
turn. Reading a tar W times costs little beside decoding.
"""

from collections.abc import Iterator, Sequence

from torch.utils.data import get_worker_info

from stages.shards.dataset import Dataset, Row

Chunk = tuple[int, int, list[tuple[Row, bytes]]]  # position in the list of shards, first row, rows and their videos


def chunks_of_turn(data: Dataset, shards: Sequence[str], size: int) -> Iterator[Chunk]:
    """The chunks of up to `size` consecutive rows that are this worker's, shard after shard; a shard may come twice.

    Raises ReskdError where a tar isn't the indexed one.
    """
    worker = get_worker_info()
    turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
    first = 0  # number of the shard's first chunk
    for position, shard in enumerate(shards):

        def mine(r: int, first: int = first) -> bool:  # each video is checked by the worker that takes it
            return (first + r // size) % workers == turn

        chunk: list[tuple[Row, bytes]] = []
        clips = data.entry(shard).clips
        for r, row, video in data.stream(shard, mine):
            chunk.append((row, video))
            if len(chunk) == size or r + 1 == clips:
                yield position, r + 1 - len(chunk), chunk
                chunk = []
        first += count_chunks(data, [shard], size)


def count_chunks(data: Dataset, shards: Sequence[str], size: int) -> int:
    """How many there are, of all workers."""
    return sum(-(-data.entry(shard).clips // size) for shard in shards)
