"""Tars as WebDataset writes and reads them. No other file imports webdataset."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cache.store import move_into_place, no_link
from stages.shards.tar_scan import VIDEO_EXTENSIONS, Sample, has_video, scan_tar

# By default, WebDataset runs code that data names (`pipe:` URLs, GOPEN_REWRITE). The variable must be set before
# webdataset is imported. It is set in the environment, so that spawned workers inherit it. webdataset imports torch;
# therefore it is imported only when a tar is written or streamed.
os.environ["WDS_SECURE"] = "1"


def read_samples(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """WebDataset's samples of an open tar that have a video, as in `scan_tar`.

    We open the tar, since WDS_SECURE makes WebDataset refuse local files.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    shard = {"url": file.name, "stream": file}
    try:
        samples = webdataset.DataPipeline([[shard]], tar_file_expander, group_by_keys)
        yield from (sample for sample in samples if has_video(sample))  # its names `__key__` and `__url__` have no dot
    except ValueError as error:  # the same member twice
        raise tarfile.ReadError(str(error.args[0])) from error


def write_shard(
    path: Path,
    temporary: Path,
    clips: Iterable[tuple[str, str, bytes, Mapping[str, Any]]],
    extensions: frozenset[str] = VIDEO_EXTENSIONS,
) -> tuple[list[Sample], int, str]:
    """Write clips (key, extension, video, metadata) by WebDataset's writer; the same clips give the same bytes.

    The tar is written to `temporary`, synced, checked by `scan_tar`, and renamed to `path`. `extensions`: those that a
    video may have. Returns the tar's samples in order, its size in bytes and its sha256. Without any clip, no tar is
    written, and the samples are empty.
    """
    import webdataset

    count = 0
    with open(temporary, "wb", opener=no_link) as file:
        hashed = _HashedFile(file)
        with webdataset.TarWriter(hashed, encoder=False, mtime=0, user="", group="") as writer:
            for count, (key, ext, video, metadata) in enumerate(clips, 1):  # noqa: B007
                writer.write({"__key__": key, ext: video, "json": json.dumps(metadata).encode()})
        file.flush()
        os.fsync(file.fileno())
    if count == 0:
        temporary.unlink()
        return [], 0, ""
    samples, size = scan_tar(temporary, extensions).samples, temporary.stat().st_size
    assert len(samples) == count
    move_into_place(temporary, path)
    return samples, size, hashed.sha256.hexdigest()


class _HashedFile:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)
