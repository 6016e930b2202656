"""The views of windows over a long video, decoded once from its start. Memory doesn't grow with the video."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cache.view import View
from stages.predict.windows import Windows
from stages.video.container import open_video
from stages.video.errors import DecodeError
from stages.video.frame_times import STEP, FrameTimes
from stages.video.pyav_decode import upright, whole_frames
from stages.video.render import render

MAX_MISSING = 16  # frames that packets may promise at the end of a video, and that don't come; at most a tenth of all

ViewsOf = Callable[[int], list[View]]  # number of a window -> its views; frames count from the window's first


@dataclass
class _OpenWindow:
    """A window that waits for frames."""

    number: int
    views: list[View]
    clips: np.ndarray  # uint8 [V,T,3,S,S]
    missing: int  # pictures


@dataclass
class WindowStream:
    """Gives the windows of a video in order, from number `begin` on.

    Pictures are shrunk as soon as they are decoded. So the memory holds one frame, and the small pictures of the windows
    that overlap.
    """

    windows: Windows
    found: FrameTimes
    views_of: ViewsOf
    size: int
    render_via: int | None
    begin: int = 0
    _open: deque[_OpenWindow] = field(default_factory=deque)
    _wanted: dict[int, list[tuple[_OpenWindow, int, int]]] = field(default_factory=dict)  # frame -> window, view, place
    _next: int = 0  # the window to open next

    def run(self, data: bytes | mmap.mmap, threads: int) -> Iterator[np.ndarray | None]:
        """Yields the pictures of each window, uint8 [V,T,3,S,S], and None now and then, so that the caller can watch the time.

        Frame i is the i-th one that is decoded; or, where frames have times, the one with the i-th time. If that one
        doesn't come out of its packet, the next one stands in. Raises DecodeError for a damaged frame, if frames change
        size, and if the video ends early.
        """
        self._next, served, last = self.begin, -1, None
        with open_video(data, threads) as (container, stream):
            for count, frame in enumerate(whole_frames(container.decode(stream))):
                index = max(served, self.found.index_of(frame.pts, count))
                last = frame
                self._serve(served + 1, index, frame)
                served = index
                while self._open and not self._open[0].missing:
                    yield self._open.popleft().clips
                if self._next == len(self.windows) and not self._open:
                    return
                if count % STEP == 0:
                    yield None
            total = len(self.found.seconds)
            if last is None or served < total - 1 - min(MAX_MISSING, total // 10):
                raise DecodeError(f"it ends after {served + 1} frames; its packets promise {total}")
            self._serve(served + 1, total - 1, last)
        while self._open:
            yield self._open.popleft().clips

    def _serve(self, first: int, last: int, frame) -> None:
        """Give a frame to all who wait for one of the numbers from `first` to `last`."""
        while self._next < len(self.windows) and self.windows.firsts[self._next] <= last:
            self._open_window(self._next)
            self._next += 1
        waiting = [place for number in range(first, last + 1) for place in self._wanted.pop(number, ())]
        if not waiting:
            return
        pixels = upright(frame)
        if pixels.shape[:2] != (self.found.height, self.found.width):
            raise DecodeError("its frames change size or rotation on the way")
        pictures: dict[bytes, np.ndarray] = {}
        for window, v, t in waiting:
            view = window.views[v]
            box = view.box.tobytes() + bytes([view.flip])
            if box not in pictures:
                one = View(view.frames[:1], view.box, view.flip)
                pictures[box] = render([pixels], one, self.size, self.render_via)[0]
            window.clips[v, t] = pictures[box]
            window.missing -= 1

    def _open_window(self, number: int) -> None:
        views, first = self.views_of(number), int(self.windows.firsts[number])
        time = len(views[0].frames)
        clips = np.empty((len(views), time, 3, self.size, self.size), np.uint8)
        window = _OpenWindow(number, views, clips, len(views) * time)
        self._open.append(window)
        for v, view in enumerate(views):
            for t, frame in enumerate(view.frames.tolist()):
                self._wanted.setdefault(first + frame, []).append((window, v, t))
