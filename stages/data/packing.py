"""Making a pack: which frames, decoded and encoded anew by DataLoader workers in tar order, into one tar a shard."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from cache.errors import ReskdError
from cache.reader import CacheReader
from stages.data import jpeg
from stages.data.decode import DecodeError, decode_frames
from stages.data.heights import packed_size
from stages.data.index import dump, rows_path, write_whole
from stages.data.packfiles import COLUMNS
from stages.data.plan import splitmix64
from stages.data.shards import Dataset, Row, write_shard
from stages.data.turns import chunks_of_turn, count_chunks

CHUNK = 4  # clips that a worker hands over at once
PIECE = 2**29  # bytes of decoded pixels that one call of the decoder may give
SAMPLE_CLIPS, SAMPLE_FRAMES = 16, 4


@dataclass(frozen=True)
class Wanted:
    """Which frames: those of the first `views` stored views of `cache`, or all of them where there is none."""

    cache: CacheReader | None
    views: int

    def of(self, data: Dataset, shard: str) -> list[np.ndarray]:
        """For each row its frames, [n] int64, sorted, from the clip's start; none of an unreadable one."""
        rows = data.rows(shard)
        if self.cache is None:
            return [np.arange(row.frames) for row in rows]
        stored = np.concatenate([self.cache.view(shard, view).frames for view in range(self.views)], axis=1)
        lost = self.lost(data, shard)
        return [np.unique(frames[: 0 if r in lost else None]).astype(np.int64) for r, frames in enumerate(stored)]

    def lost(self, data: Dataset, shard: str) -> dict[int, str]:
        """row -> reason of those in quarantine already."""
        cached = self.cache.manifest.quarantine.get(shard, {}) if self.cache else {}
        return {r: f"in the cache: {reason}" for r, reason in cached.items()} | data.quarantine.get(shard, {})


@dataclass(frozen=True)
class PackedClip:
    """A row's JPEGs in the order of its frames; none where it has an `error`."""

    key: str
    frames: np.ndarray  # [n] int64, from the clip's start
    jpegs: tuple[bytes, ...]
    width: int  # of each, in px, as `height`
    height: int
    decoder: str  # that served
    error: str | None


def pack_clip(video: bytes, row: Row, frames: np.ndarray, short: int, quality: int) -> PackedClip:
    """Decode these frames of a clip, and encode them with a shorter side of `short` px. Raises DecodeError."""
    width, height = packed_size(row.width, row.height, short)
    step = max(1, PIECE // (3 * row.width * row.height))
    jpegs, decoder = [], row.decoder
    for i in range(0, len(frames), step):
        pictures, served = decode_frames(video, row.start + frames[i : i + step], row.decoder)
        jpegs += [jpeg.encode(jpeg.shrink(picture, width, height), quality) for picture in pictures]
        decoder = served if served != row.decoder else decoder
    return PackedClip(row.key, frames, tuple(jpegs), width, height, decoder, None)


class AllFrames(IterableDataset):
    """Iterates over lists of PackedClip, the rows of the given shards, shard after shard."""

    def __init__(self, data: Dataset, shards: Sequence[str], wanted: Wanted, short: int, quality: int):
        self.data, self.shards, self.wanted, self.short, self.quality = data, shards, wanted, short, quality

    def __len__(self) -> int:
        return count_chunks(self.data, self.shards, CHUNK)

    def __iter__(self) -> Iterator[list[PackedClip] | ReskdError]:
        try:
            position = None
            for at, start, rows in chunks_of_turn(self.data, self.shards, CHUNK):
                if at != position:
                    position, shard = at, self.shards[at]
                    frames, lost = self.wanted.of(self.data, shard), self.wanted.lost(self.data, shard)
                yield [self._packed(row, video, frames[r], lost.get(r)) for r, (row, video) in enumerate(rows, start)]
        except ReskdError as error:  # as a value: see stages/data/join.py
            yield error

    def _packed(self, row: Row, video: bytes, frames: np.ndarray, lost: str | None) -> PackedClip:
        if lost is None:
            try:
                return pack_clip(video, row, frames, self.short, self.quality)
            except DecodeError as error:
                lost = str(error)
        return PackedClip(row.key, frames[:0], (), 0, 0, row.decoder, lost)


def sample_pictures(data: Dataset, wanted: Wanted, short: int) -> list[np.ndarray]:
    """Some shrunk frames, uint8 [h,w,3], of some clips: the same ones for one data set. Raises ReskdError where none of
    these clips can be decoded.
    """
    clips = [(s, int(r)) for s, usable in enumerate(data.usable_rows()) for r in usable]
    order = np.argsort(splitmix64(len(clips), len(clips)), kind="stable")[:SAMPLE_CLIPS]
    pictures, failed = [], None
    for s, r in sorted(clips[i] for i in order):
        shard = data.shards[s].name
        row, frames = data.rows(shard)[r], wanted.of(data, shard)[r]
        if not len(frames):
            continue
        some = frames[np.unique(np.linspace(0, len(frames) - 1, SAMPLE_FRAMES).astype(int))]
        try:
            decoded, _ = decode_frames(data.read(shard, r), row.start + some, row.decoder)
        except DecodeError as error:
            failed = f"{shard}/{row.key}: {error}"
            continue
        pictures += [jpeg.shrink(picture, *packed_size(row.width, row.height, short)) for picture in decoded]
    if not pictures:
        raise ReskdError(f"{data.path}: no clip of a sample of {len(order)} can be packed ({failed or 'no usable clip'}): "
                         "look into the data set's quarantine.jsonl")  # fmt: skip
    return pictures


def commit_shard(path: Path, shard: str, clips: Iterator[PackedClip]) -> None:
    """Write a shard's tar, and then its rows: killed anywhere, it is there whole or made again. Raises OSError."""
    temporary, columns = (path / shard).with_name(f".{Path(shard).name}.partial"), {name: [] for name in COLUMNS}
    temporary.parent.mkdir(parents=True, exist_ok=True)

    def members() -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
        for clip in clips:
            sizes = [len(picture) for picture in clip.jpegs]
            about = {"frames": clip.frames.tolist(), "sizes": sizes, "width": clip.width, "height": clip.height}
            for name in ("key", "width", "height", "decoder", "error"):
                columns[name].append(getattr(clip, name))
            columns["frames"].append(about["frames"])
            columns["offsets"].append([0, *accumulate(sizes[:-1])] if sizes else [])
            columns["crc"].append([zlib.crc32(picture) for picture in clip.jpegs])
            yield clip.key, "mjpeg", b"".join(clip.jpegs), {"error": clip.error} if clip.error else about

    try:
        samples, size, digest = write_shard(path / shard, temporary, members(), frozenset({"mjpeg"}))
    except BaseException:
        temporary.unlink(missing_ok=True)  # of a full disk: room for what is to be written in its place
        raise
    for name in ("offset", "size", "header"):
        columns[name] = [getattr(sample.video, name) for sample in samples]
    write_whole(rows_path(path, shard), dump({"bytes": size, "sha256": digest} | columns))
