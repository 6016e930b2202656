"""The data set that a student streams: clips, decoded and rendered, with their stored views and targets.

It is map-style: an index is (shard, row, view). Persistent workers don't need to know the epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from cache.errors import ReskdError
from cache.reader import CacheReader
from cache.view import BLOCK, View, ViewPolicy, sample_view
from stages.shards.dataset import ChangedVideo, Dataset, Row
from stages.shards.local_blocks import LocalBlocks
from stages.stream.batch import Batch
from stages.stream.clip_at_work import clip_at_work, still_waiting
from stages.video.decode import decode_frames
from stages.video.errors import DecodeError
from stages.video.render import Rendering, needed_frames, render, resize_pictures

Index = tuple[int, int, int]  # shard (position in the data set's list), row, view
ReadFrames = Callable[[Dataset, str, int, np.ndarray], tuple[np.ndarray, str]]  # as `decode_row`
ReadCrop = Callable[[Dataset, str, int, int, View], tuple[np.ndarray, str]]  # as `Pack.crop` of pack_reader.py
MAX_DECODED_BYTES = (
    2**30
)  # of pixels in one decode: 30 views of 32 frames up to 640x360 px, fewer views of larger videos


class ClipDataset(TorchDataset):
    """`clips[[(shard, row, view), ...]]` -> Batch. One decode of a row serves its consecutive views.

    `policy`: draws the view of that number (the epoch, for fresh views). `cache`: in place of it, gives the stored view of
    that number, and its targets.
    `other_renderings`: further renderings of each view, for a teacher in the loop or for other students.
    `decode`: reads frames; by default `decode_row`. `decode_row_in_memory` keeps every decoded clip in this process.
    `crops`: reads stored views as rendered pictures; then `decode` is not used.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        size: int,
        num_classes: int,
        policy: ViewPolicy | None = None,
        cache: CacheReader | None = None,
        render_via: int | None = None,
        other_renderings: Sequence[Rendering] = (),
        decode: ReadFrames | None = None,
        crops: ReadCrop | None = None,
    ):
        assert (policy is None) != (cache is None) and (crops is None or cache is not None)
        self.data, self.renderings = data, ((size, render_via), *other_renderings)
        self.num_classes, self.policy, self.cache = num_classes, policy, cache
        self.decode, self.crops = decode or decode_row, crops

    @property
    def reads_videos(self) -> bool:
        """Whether frames come from the data set's videos, not from a pack."""
        return self.crops is None and self.decode in (decode_row, decode_row_in_memory)

    def with_local(self, local: LocalBlocks) -> ClipDataset:
        """The same clips, whose videos are read from blocks in a local folder."""
        copied = copy.copy(self)
        copied.data = self.data.with_local(local)
        return copied

    def __getitem__(self, index: Index) -> Batch:
        return self.__getitems__([index])

    def fetcher(self, first: int, step: int) -> Callable[[Sequence[Index]], Batch | ReskdError]:
        """What a worker makes batches with: see `make_batches`."""
        return self.__getitems__

    def __getitems__(self, indices: Sequence[Index]) -> Batch | ReskdError:
        # Errors are returned: an error that a worker raises shows the user the tracebacks of two processes.
        try:
            return self._batch(indices)
        except ReskdError as error:
            return error

    def _batch(self, indices: Sequence[Index]) -> Batch:
        if self.data.local is not None:  # before the clips' limits of time begin
            places = {(self.data.shards[s].name, r) for s, r, _ in indices}
            self.data.local.wait_for(self.data, places, still_waiting)
        rows = [self.data.rows(self.data.shards[s].name)[r] for s, r, _ in indices]
        views, targets = self.views_and_targets(indices, rows)
        time = len(views[0].frames)
        pixels = {(size, via): np.zeros((len(rows), time, 3, size, size), np.uint8) for size, via in self.renderings}
        usable, failures, fallbacks = np.ones(len(rows), bool), {}, {}
        for run in _runs_of_one_decode(indices, rows, views):
            (s, r, _), row = indices[run[0]], rows[run[0]]
            clip = f"{self.data.shards[s].name}/{row.key}"
            try:
                with clip_at_work(clip):
                    served = self._render_row(run, indices, row, views, pixels)
            except DecodeError as error:
                usable[run] = False
                failures.setdefault((s, r), f"{clip}: {error}")
                continue
            if served != row.decoder:
                fallbacks[s, r] = f"{clip}: {row.decoder} failed, {served} served"
        multi_hot = torch.zeros(len(rows), self.num_classes)
        for i, row in enumerate(rows):
            multi_hot[i, list(row.labels)] = 1.0
        clips = {rendering: torch.from_numpy(array) for rendering, array in pixels.items()}
        return Batch(
            clips=clips[self.renderings[0]],
            other_renderings={rendering: clips[rendering] for rendering in self.renderings[1:]},
            labels=torch.tensor([row.labels[0] if row.labels else -1 for row in rows]),
            multi_hot=multi_hot,
            usable=torch.from_numpy(usable),
            index=torch.tensor(indices),
            failures=tuple(failures.values()),
            fallbacks=tuple(fallbacks.values()),
            **targets,
        )

    def _render_row(
        self,
        run: Sequence[int],
        indices: Sequence[Index],
        row: Row,
        views: Sequence[View],
        pixels: Mapping[Rendering, np.ndarray],
    ) -> str:
        """Write the pictures of a row's consecutive views, at the positions `run`, into `pixels`, [B,T,3,S,S] each.

        Returns the decoder that served the frames. Raises DecodeError."""
        s, r, _ = indices[run[0]]
        shard = self.data.shards[s].name
        if self.crops:
            for i in run:
                pictures, served = self.crops(self.data, shard, r, indices[i][2], views[i])
                for (size, _), clips in pixels.items():
                    clips[i] = resize_pictures(pictures, size)
            return served
        wanted, places = needed_frames([views[i] for i in run])
        decoded, served = self.decode(self.data, shard, r, row.start + wanted)
        for i, numbers in zip(run, places, strict=True):
            frames = [decoded[k] for k in numbers]  # views of the array, no copies
            for rendering, clips in pixels.items():
                clips[i] = render(frames, views[i], *rendering)
        return served

    def views_and_targets(self, indices: Sequence[Index], rows: Sequence[Row]) -> tuple[list[View], dict[str, Tensor]]:
        """The view of each row, and from a cache its targets: "logits" and "features", as in `Batch`.

        Raises ReskdError if the cache has another key for a row than the data set, or no targets for it."""
        names = [self.data.shards[s].name for s, _, _ in indices]
        if self.cache is None:
            drawn = [
                sample_view(self.policy, shard=name, key=row.key, index=v, num_frames=row.frames, aspect=row.aspect)
                for name, (_, _, v), row in zip(names, indices, rows, strict=True)
            ]
            return drawn, {}
        stored_views, logits, features = [], [], []
        for name, (_, r, v), row in zip(names, indices, rows, strict=True):
            block, i = self.cache.block(name, v, r // BLOCK), r % BLOCK
            if block.keys[i] != row.key:
                raise ReskdError(
                    f"shard {name} row {r}: the data set has the clip {row.key!r}, the cache has {block.keys[i]!r}. "
                    f"The cache belongs to another version of the shard: run cache-teacher into a new folder"
                )
            if not block.valid[i]:
                raise ReskdError(f"shard {name} row {r} ({row.key!r}) has no targets in view {v} of the cache, "
                                 f"but the cache's manifest doesn't list the row as quarantined: run "
                                 f"cache-teacher again")  # fmt: skip
            stored_views.append(block.view_of(i))
            if block.logits is not None:
                logits.append(block.logits[i])
            if block.features is not None:
                features.append(np.moveaxis(block.features[i], -1, 0))
        targets = {
            name: torch.from_numpy(np.stack(rows))
            for name, rows in (("logits", logits), ("features", features))
            if rows
        }
        if features:
            targets["features"] = targets["features"].movedim(1, -1)  # no copy: rows are stored channel by channel
        return stored_views, targets


def decode_row(data: Dataset, shard: str, r: int, frames: np.ndarray) -> tuple[np.ndarray, str]:
    """Frames of row number `r`, uint8 [n,H,W,3], and the decoder that served them. Raises DecodeError.

    `frames`: [n] integers, numbers in the row's video."""
    try:
        video = data.read(shard, r)
    except ChangedVideo as error:  # one rotten video costs a clip, not a run
        raise DecodeError(str(error)) from error
    return decode_frames(video, frames, data.rows(shard)[r].decoder)


def decode_row_in_memory(data: Dataset, shard: str, r: int, frames: np.ndarray) -> tuple[np.ndarray, str]:
    """As `decode_row`, but the whole clip is decoded and stays in memory."""
    row = data.rows(shard)[r]
    pictures, served = _whole_clip(_Clip(data, shard, r, row.sha256))
    return pictures[frames - row.start], served


@dataclass(frozen=True)
class _Clip:
    """A clip of a data set. Clips are equal if their content is equal, whatever the data set, shard and row."""

    data: Dataset = field(compare=False)
    shard: str = field(compare=False)
    row: int = field(compare=False)
    sha256: str


@cache
def _whole_clip(key: _Clip) -> tuple[np.ndarray, str]:
    row = key.data.rows(key.shard)[key.row]
    return decode_row(key.data, key.shard, key.row, row.start + np.arange(row.frames))


def _runs_of_one_decode(indices: Sequence[Index], rows: Sequence[Row], views: Sequence[View]) -> Iterator[list[int]]:
    """Positions of consecutive views of one row, as many as one decode of at most MAX_DECODED_BYTES serves."""
    for _, group in groupby(range(len(indices)), key=lambda i: indices[i][:2]):
        run = list(group)
        row = rows[run[0]]
        max_views = views_of_one_decode(row.width, row.height, len(views[run[0]].frames))
        yield from (run[i : i + max_views] for i in range(0, len(run), max_views))


def views_of_one_decode(width: int, height: int, frames: int) -> int:
    """How many views of `frames` frames of `width` x `height` px one decode of MAX_DECODED_BYTES serves; at least one."""
    return max(1, MAX_DECODED_BYTES // (3 * width * height * frames))
