"""Stage one's input: the new views of every clip in tar order. One decode of a clip serves all its views.

One reader streams the tars, each from its start to its end, and hands the encoded clips to the decoding processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.errors import ReskdError
from cache.view import View, ViewPolicy, sample_view
from stages.shards.dataset import Dataset, Row
from stages.shards.worker_chunks import chunks_of_worker, count_chunks
from stages.stream.clip_at_work import clip_at_work
from stages.stream.worker_process import Large
from stages.video.decode import decode_frames
from stages.video.errors import DecodeError
from stages.video.render import needed_frames, render


@dataclass(frozen=True)
class ShardWork:
    """What stage one has to compute for a shard: missing views, or missing targets of views that the cache has."""

    shard: str
    views: range
    targets: tuple[str, ...] = ()  # to compute; empty if none are stored


@dataclass(frozen=True)
class EncodedClips(Large):
    """Rows [start, start + n) of the shard of `work`, with their encoded videos."""

    work: ShardWork
    start: int
    rows: list[tuple[Row, bytes]]


@dataclass(frozen=True)
class ViewBatch:
    """Rows [start, start + n) of a shard in v views, padded to B rows, the fixed batch size of the teacher's forward."""

    work: ShardWork
    start: int
    frames: np.ndarray  # int32 [n,v,T]
    box: np.ndarray  # float32 [n,v,4]
    flip: np.ndarray  # bool [n,v]
    clips: Tensor  # uint8 [v,B,T,3,S,S]; zeros for clips that can't be decoded, and in the padding
    quarantine: dict[str, str]  # key -> reason, for rows that can't be decoded
    fallbacks: dict[str, str]  # key -> reason, for rows that another decoder served

    def pin_memory(self) -> ViewBatch:
        return ViewBatch(**{**self.__dict__, "clips": self.clips.pin_memory()})


class AllViews:
    """Iterates over the ViewBatches of the given work, shard after shard."""

    def __init__(self, data: Dataset, work: Sequence[ShardWork], policy: ViewPolicy, size: int, batch_size: int):
        self.data, self.work = data, work
        self.policy, self.size, self.batch_size = policy, size, batch_size

    def __len__(self) -> int:
        return count_chunks(self.data, [work.shard for work in self.work], self.batch_size)

    def __iter__(self) -> Iterator[ViewBatch | ReskdError]:
        return map(self.make, self.read())

    def read(self) -> Iterator[EncodedClips | ReskdError]:
        """The clips of each batch, in order; each tar is read once. An error comes last, as a value."""
        try:
            for work in self.work:
                for _, start, rows in chunks_of_worker(self.data, [work.shard], self.batch_size):
                    yield EncodedClips(work, start, rows)
        except ReskdError as error:  # yielded as a value: see stages/stream/clips.py
            yield error

    def fetcher(self, first: int, step: int) -> Callable[[EncodedClips | ReskdError], ViewBatch | ReskdError]:
        """What a worker makes batches of `read`'s items with: see `make_batches`."""
        return self.make

    def make(self, clips: EncodedClips | ReskdError) -> ViewBatch | ReskdError:
        """Decode and render clips. An error stays one."""
        return clips if isinstance(clips, ReskdError) else self._render(clips.work, clips.start, clips.rows)

    def _render(self, work: ShardWork, start: int, rows: Sequence[tuple[Row, bytes]]) -> ViewBatch:
        time, size = self.policy.num_frames, self.size
        clips = torch.zeros((len(work.views), self.batch_size, time, 3, size, size), dtype=torch.uint8)
        pixels = clips.numpy()
        frames = np.zeros((len(rows), len(work.views), time), np.int32)
        box = np.zeros((len(rows), len(work.views), 4), np.float32)
        flip = np.zeros((len(rows), len(work.views)), bool)
        quarantine, fallbacks = {}, {}
        for i, (row, video) in enumerate(rows):
            if row.error is not None:
                quarantine[row.key] = row.error
                continue
            views = [self._view(work.shard, row, v) for v in work.views]
            for j, view in enumerate(views):
                frames[i, j], box[i, j], flip[i, j] = view.frames, view.box, view.flip
            wanted, places = needed_frames(views)
            try:
                with clip_at_work(f"{work.shard}/{row.key}"):
                    pictures, served = decode_frames(video, row.start + wanted, row.decoder)
                    for j, view in enumerate(views):
                        pixels[j, i] = render([pictures[k] for k in places[j]], view, size)
            except DecodeError as error:
                quarantine[row.key] = str(error)
                continue
            if served != row.decoder:
                fallbacks[row.key] = f"{row.decoder} failed, {served} served"
        return ViewBatch(work, start, frames, box, flip, clips, quarantine, fallbacks)

    def _view(self, shard: str, row: Row, index: int) -> View:
        return sample_view(self.policy, shard=shard, key=row.key, index=index, num_frames=row.frames, aspect=row.aspect)
