"""Several workers stream shards together, each every W-th chunk of rows. Reading a tar W times costs little compared
with decoding.
"""

from collections.abc import Iterator, Sequence

from stages.shards.dataset import Dataset, Row
from stages.shards.stream_shard import stream_shard

Chunk = tuple[int, int, list[tuple[Row, bytes]]]  # position in the list of shards, first row, rows and their videos


def chunks_of_worker(data: Dataset, shards: Sequence[str], size: int, first: int = 0, step: int = 1) -> Iterator[Chunk]:
    """The chunks number `first`, `first + step`, … of all chunks of up to `size` consecutive rows, shard after shard.

    `shards` may name a shard twice. A shard that lies before the first chunk isn't read. Raises ReskdError if a tar
    differs from the index.
    """
    begin = 0  # number of the shard's first chunk
    for position, shard in enumerate(shards):
        end = begin + count_chunks(data, [shard], size)

        def is_wanted(r: int, begin: int = begin) -> bool:
            number = begin + r // size
            return number >= first and (number - first) % step == 0

        chunk: list[tuple[Row, bytes]] = []
        clips = data.entry(shard).clips
        for r, row, video in stream_shard(data, shard, is_wanted) if end > first else ():
            chunk.append((row, video))
            if len(chunk) == size or r + 1 == clips:
                yield position, r + 1 - len(chunk), chunk
                chunk = []
        begin = end


def count_chunks(data: Dataset, shards: Sequence[str], size: int) -> int:
    """How many chunks the shards have together."""
    return sum(-(-data.entry(shard).clips // size) for shard in shards)
