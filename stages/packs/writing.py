"""Writing a pack. Workers decode and encode the pictures in tar order; each shard becomes one tar."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import ReskdError
from cache.reader import Block, CacheReader
from cache.store import write_atomically
from cache.view import View
from stages.shards.dataset import Dataset, Row
from stages.shards.index import dump, rows_path
from stages.shards.webdataset_tar import write_shard
from stages.shards.worker_chunks import chunks_of_worker, count_chunks
from stages.stream.clip_at_work import clip_at_work
from stages.stream.epoch_plan import splitmix64
from stages.stream.frame_height import packed_size
from stages.stream.pack_files import COLUMNS, view_digest
from stages.video import jpeg
from stages.video.decode import decode_frames
from stages.video.errors import DecodeError
from stages.video.render import needed_frames, render

CHUNK = 4  # clips that a worker returns at once
MAX_DECODED_BYTES = 2**29  # of pixels in one decode
SAMPLE_CLIPS, SAMPLE_FRAMES = 16, 4


@dataclass(frozen=True)
class WantedPictures:
    """Which pictures are packed: all frames without a `cache`; else those of its first `views` stored views."""

    cache: CacheReader | None
    views: int

    @property
    def crops(self) -> bool:
        return self.cache is not None

    def frames_of_rows(self, data: Dataset, shard: str) -> list[np.ndarray]:
        """For each row the frame number of each picture, [n] int64, from the clip's start; empty for a quarantined row.

        Crops have T for each view, view after view."""
        rows = data.rows(shard)
        if self.cache is None:
            return [np.arange(row.frames) for row in rows]
        rows_frames = np.concatenate([block.frames for block in self.stored_views(shard)], axis=1)
        quarantined = self.quarantined(data, shard)
        return [f[: 0 if r in quarantined else None].astype(np.int64) for r, f in enumerate(rows_frames)]

    def stored_views(self, shard: str) -> list[Block]:
        """The cache's first `views` views of a shard."""
        return [self.cache.view(shard, view) for view in range(self.views)]

    def quarantined(self, data: Dataset, shard: str) -> dict[int, str]:
        """row -> reason, for rows in the cache's or the data set's quarantine."""
        cached = self.cache.manifest.quarantine.get(shard, {}) if self.cache else {}
        return {r: f"in the cache: {reason}" for r, reason in cached.items()} | data.quarantine.get(shard, {})


@dataclass(frozen=True)
class PackedClip:
    """A row's JPEGs, in the order of `frames`; none if the row has an `error`."""

    key: str
    frames: np.ndarray  # [n] int64, from the clip's start
    jpegs: tuple[bytes, ...]
    width: int  # of each picture, px
    height: int
    decoder: str  # that served the frames
    error: str | None  # why the clip is quarantined
    views: tuple[int, ...] = ()  # digests of the packed views; empty unless crops are packed


def pack_frames(video: bytes, row: Row, frames: np.ndarray, short: int, quality: int) -> PackedClip:
    """Decode these frames of a clip, and encode them with a shorter side of `short` px. Raises DecodeError."""
    width, height = packed_size(row.width, row.height, short)
    step = max(1, MAX_DECODED_BYTES // (3 * row.width * row.height))
    jpegs, decoder = [], row.decoder
    for i in range(0, len(frames), step):
        pictures, served = decode_frames(video, row.start + frames[i : i + step], row.decoder)
        jpegs += [jpeg.encode(jpeg.shrink(picture, width, height), quality) for picture in pictures]
        decoder = served if served != row.decoder else decoder
    return PackedClip(row.key, frames, tuple(jpegs), width, height, decoder, None)


def pack_crops(video: bytes, row: Row, views: Sequence[View], size: int, quality: int) -> PackedClip:
    """Decode the frames of these views, and encode the views' pictures at `size` px. Raises DecodeError."""
    step = max(1, MAX_DECODED_BYTES // (3 * row.width * row.height * len(views[0].frames)))
    jpegs, decoder = [], row.decoder
    for i in range(0, len(views), step):
        part = views[i : i + step]
        wanted, places = needed_frames(part)
        pictures, served = decode_frames(video, row.start + wanted, row.decoder)
        for view, view_places in zip(part, places, strict=True):
            crops = render([pictures[k] for k in view_places], view, size)
            jpegs += [jpeg.encode(crop, quality, full_colour=True) for crop in crops.transpose(0, 2, 3, 1)]
        decoder = served if served != row.decoder else decoder
    frames = np.concatenate([view.frames for view in views]).astype(np.int64)
    digests = tuple(map(view_digest, views))
    return PackedClip(row.key, frames, tuple(jpegs), size, size, decoder, None, digests)


class AllPictures:
    """Iterates over lists of PackedClips: the rows of the given shards, shard after shard."""

    def __init__(self, data: Dataset, shards: Sequence[str], wanted: WantedPictures, short: int, quality: int):
        self.data, self.shards, self.wanted, self.short, self.quality = data, shards, wanted, short, quality

    def __len__(self) -> int:
        return count_chunks(self.data, self.shards, CHUNK)

    def __iter__(self) -> Iterator[list[PackedClip] | ReskdError]:
        return self.chunks()

    def fetcher(self, first: int, step: int) -> Callable[[int], list[PackedClip] | ReskdError]:
        """What a worker makes the lists `first`, `first + step`, … with: see `make_batches`."""
        chunks = self.chunks(first, step)
        return lambda number: next(chunks)

    def chunks(self, first: int = 0, step: int = 1) -> Iterator[list[PackedClip] | ReskdError]:
        """The lists `first`, `first + step`, …"""
        try:
            position = None
            for number, start, rows in chunks_of_worker(self.data, self.shards, CHUNK, first, step):
                if number != position:
                    position, shard = number, self.shards[number]
                    quarantined = self.wanted.quarantined(self.data, shard)
                    needed = (
                        self.wanted.stored_views(shard)
                        if self.wanted.crops
                        else self.wanted.frames_of_rows(self.data, shard)
                    )
                yield [
                    self._pack_row(shard, row, video, r, needed, quarantined.get(r))
                    for r, (row, video) in enumerate(rows, start)
                ]
        except ReskdError as error:  # yielded as a value: see stages/stream/clips.py
            yield error

    def _pack_row(
        self, shard: str, row: Row, video: bytes, r: int, needed: list[np.ndarray] | list[Block], error: str | None
    ) -> PackedClip:
        """Row number `r` of a shard. `needed`: the frames of each row; for crops, the shard's stored views."""
        if error is None:
            try:
                with clip_at_work(f"{shard}/{row.key}"):
                    if self.wanted.crops:
                        return pack_crops(video, row, [block.view_of(r) for block in needed], self.short, self.quality)
                    return pack_frames(video, row, needed[r], self.short, self.quality)
            except DecodeError as failure:
                error = str(failure)
        return PackedClip(row.key, np.array([], np.int64), (), 0, 0, row.decoder, error)


def sample_pictures(data: Dataset, wanted: WantedPictures, short: int) -> list[np.ndarray]:
    """Some pictures, uint8 [h,w,3], of some clips. The choice depends on the data set alone.

    Raises ReskdError if none of these clips can be decoded.
    """
    clips = [(s, int(r)) for s, usable in enumerate(data.usable_rows()) for r in usable]
    order = np.argsort(splitmix64(len(clips), len(clips)), kind="stable")[:SAMPLE_CLIPS]
    pictures, failed = [], None
    for s, r in sorted(clips[i] for i in order):
        shard = data.shards[s].name
        row, frames = data.rows(shard)[r], wanted.frames_of_rows(data, shard)[r]
        if not len(frames):
            continue
        places = np.unique(np.linspace(0, len(frames) - 1, SAMPLE_FRAMES).astype(int))
        sampled, positions = np.unique(frames[places], return_inverse=True)
        try:
            decoded, _ = decode_frames(data.read(shard, r), row.start + sampled, row.decoder)
        except DecodeError as error:
            failed = f"{shard}/{row.key}: {error}"
            continue
        if wanted.crops:
            views, time = wanted.stored_views(shard), len(frames) // wanted.views
            for place, k in zip(places, positions, strict=True):
                view = replace(views[place // time].view_of(r), frames=frames[place : place + 1])
                pictures.append(np.ascontiguousarray(render([decoded[k]], view, short)[0].transpose(1, 2, 0)))
        else:
            pictures += [jpeg.shrink(picture, *packed_size(row.width, row.height, short)) for picture in decoded]
    if not pictures:
        raise ReskdError(f"{data.path}: no clip of a sample of {len(order)} can be packed ({failed or 'no usable clip'}): "
                         "read the data set's quarantine.jsonl")  # fmt: skip
    return pictures


def commit_shard(path: Path, shard: str, clips: Iterator[PackedClip]) -> None:
    """Write a shard's tar, then its rows file, which commits the shard. A killed write is repeated. Raises OSError."""
    temporary, columns = (path / shard).with_name(f".{Path(shard).name}.partial"), {name: [] for name in COLUMNS}
    temporary.parent.mkdir(parents=True, exist_ok=True)

    def members() -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
        for clip in clips:
            sizes = [len(picture) for picture in clip.jpegs]
            metadata = {"frames": clip.frames.tolist(), "sizes": sizes, "width": clip.width, "height": clip.height}
            for name in ("key", "width", "height", "decoder", "error", "views"):
                columns[name].append(getattr(clip, name))
            columns["frames"].append(metadata["frames"])
            columns["offsets"].append([0, *accumulate(sizes[:-1])] if sizes else [])
            columns["crc"].append([zlib.crc32(picture) for picture in clip.jpegs])
            yield clip.key, "mjpeg", b"".join(clip.jpegs), {"error": clip.error} if clip.error else metadata

    try:
        samples, size, digest = write_shard(path / shard, temporary, members(), frozenset({"mjpeg"}))
    except BaseException:
        temporary.unlink(missing_ok=True)  # frees room on a full disk
        raise
    for name in ("offset", "size", "header"):
        columns[name] = [getattr(sample.video, name) for sample in samples]
    write_atomically(rows_path(path, shard), dump({"bytes": size, "sha256": digest} | columns))
