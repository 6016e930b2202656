"""What a decoding process does for `predict`: it finds out what a video is, and makes the pictures of its windows."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from cache.errors import ReskdError
from cache.view import View, ViewPolicy, sample_view
from stages.predict.streaming import WindowStream
from stages.predict.tasks import Answer, Facts, Task, Views
from stages.predict.videos import FileVideo, RowVideo, Video
from stages.predict.windows import Windows, plan_windows
from stages.stream.clip_at_work import clip_at_work
from stages.stream.clips import views_of_one_decode
from stages.video.decode import decode_frames, probe
from stages.video.errors import DecodeError, short_reason
from stages.video.frame_times import FrameTimes, frame_times
from stages.video.render import needed_frames, render

# A video that is seen as a whole is decoded from its start, which is exact, if it is short: to choose another decoder would
# take longer. So is a large file, which `probe` would hold in memory, and a long one: `probe` gives no sign of life before
# its end, and would take more time than the limits allow.
SHORT, LONG, LARGE = 1500, 20_000, 2**28  # frames; frames; bytes
FROM_START = "pyav"  # the decoder, as indexes call it


class Decoding:
    """The videos and how they are seen. `begin` gives a worker's function that makes the answer to a task."""

    def __init__(self, videos: Sequence[Video], views: Views, threads: int):
        self.videos, self.views, self.threads = videos, views, threads

    def begin(self, first: int, step: int) -> Callable[[Task | None], Answer | None]:
        """As `make_batches` wants it. The task None has the answer None."""
        return _Worker(self.videos, self.views, self.threads).answer


class _Worker:
    """Keeps one video open between two tasks, so that a long video is decoded once."""

    def __init__(self, videos: Sequence[Video], views: Views, threads: int):
        self.videos, self.views, self.threads = videos, views, threads
        self.open: _OpenVideo | None = None
        self.failed: dict[int, str] = {}  # a broken video is not decoded again for the tasks that are under way

    def answer(self, task: Task | None) -> Answer | None:
        if task is None:
            return None
        if task.video in self.failed:
            return Answer(task.video, error=self.failed[task.video])
        try:
            return self._look(task.video) if task.window is None else self._go_on(task)
        except (ReskdError, OSError) as error:
            self._close()
            self.failed[task.video] = (isinstance(error, OSError) and error.strerror) or str(error)
            return Answer(task.video, error=self.failed[task.video])

    def _look(self, number: int) -> Answer:
        video, views = self.videos[number], self.views
        if views.window is None and isinstance(video, RowVideo):
            return self._of_row(number, video)
        opened = _OpenVideo(number, video, views, self.threads)
        windows = opened.windows
        facts = Facts(opened.frames, windows.duration, len(windows), views.policy.views, windows.starts, windows.ends)
        if views.window is None and SHORT < opened.frames <= LONG and opened.size <= LARGE:
            opened.close()
            return self._seen_whole(number, video, facts)
        if len(windows) > views.at_once:
            opened.close()
            return Answer(number, facts, decoder=FROM_START)
        self._close()
        self.open = opened
        return replace(self._go_on(Task(number, 0)), facts=facts)

    def _of_row(self, number: int, video: RowVideo) -> Answer:
        """The views of a clip of a data set, decoded as in `evaluate`."""
        row = video.row
        with clip_at_work(video.name), video.open() as data:
            drawn = draw_views(self.views.policy, video, row.frames, row.aspect)
            clips, served = _decoded_views(data, drawn, row.start, row.decoder, (row.width, row.height), self.views)
        facts = Facts(row.frames, None, 1, len(drawn), np.zeros(1), np.zeros(1))
        return Answer(number, facts, torch.from_numpy(clips[None]), served)

    def _seen_whole(self, number: int, video: FileVideo, facts: Facts) -> Answer:
        """The views over a file, decoded by the decoder that `prepare` would choose."""
        with clip_at_work(video.name), video.open() as data:
            info = probe(data)
            drawn = draw_views(self.views.policy, video, info.frames, info.width / info.height)
            clips, served = _decoded_views(data, drawn, 0, info.decoder, (info.width, info.height), self.views)
        facts = replace(facts, frames=info.frames, seconds=info.duration)
        return Answer(number, facts, torch.from_numpy(clips[None]), served)

    def _go_on(self, task: Task) -> Answer:
        if self.open is None or (self.open.number, self.open.next) != (task.video, task.window):
            self._close()
            self.open = _OpenVideo(task.video, self.videos[task.video], self.views, self.threads, task.window)
        clips = self.open.more(self.views.at_once)
        if self.open.next == len(self.open.windows):
            self._close()
        return Answer(task.video, None, torch.from_numpy(np.stack(clips)), FROM_START)

    def _close(self) -> None:
        if self.open is not None:
            self.open.close()
            self.open = None


class _OpenVideo:
    """A video that is decoded from its start, window by window. Raises DecodeError, ReskdError or OSError."""

    def __init__(self, number: int, video: Video, views: Views, threads: int, begin: int = 0):
        self.number, self.next, self.stack = number, begin, ExitStack()
        with clip_at_work(video.name):
            data = self.stack.enter_context(video.open())
        self.size = len(data)
        try:
            found: FrameTimes = next(_watched(video.name, frame_times(data, threads)))
            start, frames = (video.row.start, video.row.frames) if isinstance(video, RowVideo) else (0, None)
            self.windows: Windows = plan_windows(found, views.window, views.hop, start, frames)
            self.frames = len(found.seconds) if frames is None else min(frames, len(found.seconds) - start)
            counts, aspect = self.windows.counts, found.width / found.height
            stream = WindowStream(
                self.windows, found, lambda w: draw_views(views.policy, video, int(counts[w]), aspect),
                views.size, views.render_via, begin,
            )  # fmt: skip
            self.pictures = _watched(video.name, stream.run(data, threads))
        except BaseException:
            self.stack.close()
            raise

    def more(self, count: int) -> list[np.ndarray]:
        """The pictures of the next windows, `count` of them or what is left."""
        clips = list(islice(self.pictures, count))
        self.next += len(clips)
        if not clips:
            raise DecodeError("it ended before its last window")
        return clips

    def close(self) -> None:
        self.pictures.close()
        self.stack.close()


def _watched(name: str, work: Iterator[Any]) -> Iterator[Any]:
    """The items of `work` that are not None. The limits of the worker count from one item to the next."""
    end = object()
    try:
        while True:
            with clip_at_work(name):
                try:
                    item = next(work, end)
                except (ReskdError, OSError):
                    raise
                except Exception as error:  # decoders raise anything for damaged files
                    raise DecodeError(short_reason(error)) from error
            if item is end:
                return
            if item is not None:
                yield item
    finally:
        work.close()


def draw_views(policy: ViewPolicy, video: Video, frames: int, aspect: float) -> list[View]:
    """The views of a clip of `frames` frames."""
    shard, key = video.key
    return [
        sample_view(policy, shard=shard, key=key, index=v, num_frames=frames, aspect=aspect)
        for v in range(policy.views)
    ]


def _decoded_views(
    data: bytes | mmap.mmap, drawn: list[View], start: int, decoder: str, shape: tuple[int, int], views: Views
) -> tuple[np.ndarray, str]:
    """The pictures of views, uint8 [V,T,3,S,S], and the decoder that served them."""
    step = views_of_one_decode(*shape, len(drawn[0].frames))
    clips, served = [], decoder
    for i in range(0, len(drawn), step):
        part = drawn[i : i + step]
        wanted, places = needed_frames(part)
        pictures, by = decode_frames(data, start + wanted, decoder)
        served = by if by != decoder else served
        clips += [
            render([pictures[k] for k in numbers], view, views.size, views.render_via)
            for view, numbers in zip(part, places, strict=True)
        ]
    return np.stack(clips), served
