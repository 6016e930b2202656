"""Rows of shards joined with their stored views and targets, decoded and rendered: what a student streams.

A map-style data set whose index says everything (shard, row, view): persistent workers never hear of a new epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from stages.shards.dataset import Dataset, Row
from stages.stream.batch import Batch
from stages.video.decode import DecodeError, decode_frames
from stages.video.device_render import Cut, Rendering, cut, windows_of
from stages.video.render import frames_of, render, shrunk

Index = tuple[int, int, int]  # shard (position in the data set's list), row, view
Decode = Callable[[Dataset, str, int, np.ndarray], tuple[np.ndarray, str]]  # as `decode_of`
Crop = Callable[[Dataset, str, int, int, View], tuple[np.ndarray, str]]  # as `packs.Pack.crop`
DECODED = 2**30  # bytes of pixels that one decode may give: 30 views of 32 frames up to 640x360, fewer of larger video


class _Pictures:
    """A batch in the making: of each rendering uint8 [B,T,3,S,S], black so far, and of each view what is cut out."""

    def __init__(self, batch: int, frames: int, renderings: Sequence[Rendering]):
        self.clips = {
            (size, render_via): np.zeros((batch, frames, 3, size, size), np.uint8) for size, render_via in renderings
        }
        self.cuts: list[Cut | None] = [None] * batch


class Clips(TorchDataset):
    """`clips[[(shard, row, view), ...]]` -> Batch. Consecutive views of a row are rendered from one decode of it.

    With `cache`, a view is the stored one of that number, beside its targets; without, it is drawn by `policy`
    (whose index is the view's number: the epoch, for fresh views). With both, it is drawn, and the targets are those of
    the stored view: another one. `also`: render each view so, too: for a teacher in the loop, or other students.
    `decode`: where frames come from (`decode_kept`: every decoded clip stays in this process's memory).
    `crops`: where stored views come from as finished pictures, in place of `decode`.
    `on_device`: leave the shrinking of frames to `Batch.to`: for small frames, since all of their pixels travel.
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
        decode: Decode | None = None,
        on_device: bool = False,
        crops: Crop | None = None,
    ):
        assert policy is not None or cache is not None
        assert crops is None or (policy is None and not on_device)
        self.data, self.renderings = data, ((size, render_via), *other_renderings)
        self.num_classes, self.policy, self.cache = num_classes, policy, cache
        self.decode, self.on_device, self.crops = decode or decode_of, on_device, crops

    def __getitem__(self, index: Index) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[Index]) -> Batch | ReskdError:
        # An error as a value: raised in a worker, it would reach the user as a traceback of two processes.
        try:
            return self._batch(indices)
        except ReskdError as error:
            return error

    def _batch(self, indices: Sequence[Index]) -> Batch:
        rows = [self.data.rows(self.data.shards[s].name)[r] for s, r, _ in indices]
        views, targets = self.joined(indices, rows)
        time = len(views[0].frames)
        into = _Pictures(len(rows), time, () if self.on_device else self.renderings)
        usable, failures, fallbacks = np.ones(len(rows), bool), {}, {}
        for run in _decoded_together(indices, rows, views):
            (s, r, _), row = indices[run[0]], rows[run[0]]
            where = f"{self.data.shards[s].name}/{row.key}"
            try:
                served = self._pictured(run, indices, row, views, into)
            except DecodeError as error:
                usable[run] = False
                failures.setdefault((s, r), f"{where}: {error}")
                continue
            if served != row.decoder:
                fallbacks[s, r] = f"{where}: {row.decoder} failed, {served} served"
        multi_hot = torch.zeros(len(rows), self.num_classes)
        for i, row in enumerate(rows):
            multi_hot[i, list(row.labels)] = 1.0
        clips = {rendering: torch.from_numpy(pixels) for rendering, pixels in into.clips.items()}
        return Batch(
            clips=clips.get(self.renderings[0]),
            other_renderings={rendering: clips[rendering] for rendering in self.renderings[1:] if clips},
            windows=windows_of(into.cuts, time, self.renderings) if self.on_device else None,
            labels=torch.tensor([row.labels[0] if row.labels else -1 for row in rows]),
            multi_hot=multi_hot,
            usable=torch.from_numpy(usable),
            index=torch.tensor(indices),
            failures=tuple(failures.values()),
            fallbacks=tuple(fallbacks.values()),
            **targets,
        )

    def _pictured(
        self, run: Sequence[int], indices: Sequence[Index], row: Row, views: Sequence[View], into: _Pictures
    ) -> str:
        """Put what consecutive views of a row show into a batch; the decoder that served. Raises DecodeError."""
        s, r, _ = indices[run[0]]
        shard = self.data.shards[s].name
        if self.crops:
            for i in run:
                pictures, served = self.crops(self.data, shard, r, indices[i][2], views[i])
                for (size, _), clips in into.clips.items():
                    clips[i] = shrunk(pictures, size)
            return served
        wanted, places = frames_of([views[i] for i in run])
        decoded, served = self.decode(self.data, shard, r, row.start + wanted)
        for i, numbers in zip(run, places, strict=True):
            frames = [decoded[k] for k in numbers]  # not copied
            if self.on_device:
                into.cuts[i] = cut(frames, views[i], self.renderings)
            for rendering, clips in into.clips.items():
                clips[i] = render(frames, views[i], *rendering)
        return served

    def joined(self, indices: Sequence[Index], rows: Sequence[Row]) -> tuple[list[View], dict[str, Tensor]]:
        """The view of each row and, from a cache, its targets; the key of each row is compared."""
        names = [self.data.shards[s].name for s, _, _ in indices]
        drawn = self.policy and [
            sample_view(self.policy, shard=name, key=row.key, index=v, num_frames=row.frames, aspect=row.aspect)
            for name, (_, _, v), row in zip(names, indices, rows, strict=True)
        ]
        if self.cache is None:
            return drawn, {}
        views, logits, features, stored = [], [], [], self.cache.manifest.views
        for name, (_, r, v), row in zip(names, indices, rows, strict=True):
            v = v if drawn is None else v % stored  # a fresh view's number is the epoch
            block, i = self.cache.block(name, v, r // BLOCK), r % BLOCK
            if block.keys[i] != row.key:
                raise ReskdError(
                    f"shard {name} row {r}: the data set has the clip {row.key!r}, the cache {block.keys[i]!r}; the "
                    f"cache belongs to another version of the shard: run cache-teacher into a new folder"
                )
            if not block.valid[i]:
                raise ReskdError(f"shard {name} row {r} ({row.key!r}) has no targets in view {v} of the cache, "
                                 f"though its manifest doesn't list the row as quarantined: run "
                                 f"cache-teacher again")  # fmt: skip
            views.append(block.view_of(i))
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
            targets["features"] = targets["features"].movedim(1, -1)  # no copy: rows lie channel by channel
        return drawn or views, targets


def decode_of(data: Dataset, shard: str, r: int, frames: np.ndarray) -> tuple[np.ndarray, str]:
    """Frames of a row's video, and the decoder that served. Raises DecodeError."""
    return decode_frames(data.read(shard, r), frames, data.rows(shard)[r].decoder)


def decode_kept(data: Dataset, shard: str, r: int, frames: np.ndarray) -> tuple[np.ndarray, str]:
    """The same, out of the whole clip, which stays in memory."""
    row = data.rows(shard)[r]
    pictures, served = _whole_clip(_Key(data, shard, r, row.sha256))
    return pictures[frames - row.start], served


@dataclass(frozen=True)
class _Key:
    """A clip by its content: the data set that it is read from is no part of what it is."""

    data: Dataset = field(compare=False)
    shard: str = field(compare=False)
    row: int = field(compare=False)
    sha256: str


@cache
def _whole_clip(key: _Key) -> tuple[np.ndarray, str]:
    row = key.data.rows(key.shard)[key.row]
    return decode_of(key.data, key.shard, key.row, row.start + np.arange(row.frames))


def _decoded_together(indices: Sequence[Index], rows: Sequence[Row], views: Sequence[View]) -> Iterator[list[int]]:
    """Positions of consecutive views of one video, as many as one decode may serve."""
    for _, group in groupby(range(len(indices)), key=lambda i: indices[i][:2]):
        run = list(group)
        row = rows[run[0]]
        most = max(1, DECODED // (3 * row.width * row.height * len(views[run[0]].frames)))
        yield from (run[i : i + most] for i in range(0, len(run), most))
