"""A shard read once from its start to its end, each sample compared with the index."""

import hashlib
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cache.view import BLOCK
from stages.remote.url_path import UrlPath
from stages.shards.dataset import Dataset, Row
from stages.shards.tar_file import FilePart
from stages.shards.tar_scan import HEADER, scan_tar
from stages.shards.webdataset_tar import read_samples

BLOCKS_AHEAD = 4  # of a tar in a store, in memory: 130 MB with clips of 500 kB

Clips = Iterator[tuple[int, Row, bytes]]  # row number, row, encoded video


def stream_shard(data: Dataset, shard: str, wanted: Callable[[int], bool] = lambda row: True) -> Clips:
    """The `wanted` rows of a shard in tar order, quarantined ones too.

    WebDataset's pipeline reads the tar. It skips faults; therefore every sample is compared with the index: the keys,
    the number of samples, and size and sha256 of the wanted videos. A tar in a store is read by the places that the
    index names, in blocks. Raises ReskdError at the first difference.
    """
    read = _blocks if isinstance(data.base, UrlPath) else _samples
    return read(data, shard, data.rows(shard), wanted)


def _samples(data: Dataset, shard: str, rows: Sequence[Row], wanted: Callable[[int], bool]) -> Clips:
    count = 0
    data.open_tar(shard)  # checks the size before the first row
    scan_tar(data.base / shard)  # WebDataset would unpack a compressed tar and fill a sparse member, however large
    try:
        with open(data.base / shard, "rb") as file:
            for count, sample in enumerate(read_samples(file), 1):
                if count > len(rows):
                    raise data.changed_tar(
                        shard, f"clip {sample['__key__']!r} comes after the last of {len(rows)} rows"
                    )
                row = rows[count - 1]
                if sample["__key__"] != row.key:
                    raise data.changed_tar(
                        shard, f"row {count - 1}: clip {sample['__key__']!r} lies where the index has {row.key!r}"
                    )
                if wanted(count - 1):
                    yield count - 1, row, _checked_video(data, shard, count - 1, row, sample)
    except (tarfile.TarError, OSError) as error:
        raise data.changed_tar(shard, f"after {count} of {len(rows)} clips: {error.args[0]}") from error
    if count < len(rows):
        raise data.changed_tar(shard, f"{count} clips, the index has {len(rows)}; the next is {rows[count].key!r}")


def _checked_video(data: Dataset, shard: str, number: int, row: Row, sample: Mapping[str, Any]) -> bytes:
    video = sample.get(row.ext)
    if video is None or len(video) != row.size or hashlib.sha256(video).hexdigest() != row.sha256:
        content = "no such member" if video is None else f"{len(video)} bytes of other content"
        raise data.changed_tar(shard, f"row {number}, {row.key}.{row.ext}: {content}, the index has {row.size} bytes")
    return video


def _blocks(data: Dataset, shard: str, rows: Sequence[Row], wanted: Callable[[int], bool]) -> Clips:
    """From a store: one request for the wanted rows of each block, some blocks ahead."""
    tar, ahead = data.open_tar(shard), deque()

    def fetch(numbers: Sequence[int]) -> FilePart:
        first = rows[numbers[0]].offset - HEADER
        return FilePart(tar.read(rows[numbers[-1]].offset + rows[numbers[-1]].size - first, first), first)

    blocks = [range(start, min(start + BLOCK, len(rows))) for start in range(0, len(rows), BLOCK)]
    parts = [numbers for block in blocks if (numbers := [r for r in block if wanted(r)])]
    with ThreadPoolExecutor(BLOCKS_AHEAD, "stream-blocks") as pool:
        try:
            for i, numbers in enumerate(parts):
                ahead.extend(pool.submit(fetch, part) for part in parts[i + len(ahead) : i + BLOCKS_AHEAD])
                part = ahead.popleft().result()
                yield from ((r, rows[r], data.read_from(part, shard, r)) for r in numbers)
        finally:
            pool.shutdown(cancel_futures=True)
