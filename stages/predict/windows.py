"""Windows over a video: which frames and which seconds each of them has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.video.errors import DecodeError
from stages.video.frame_times import FrameTimes, nearest

MAX_WINDOWS = 2**20  # of a video


@dataclass(frozen=True)
class Windows:
    """The windows of a video, in order. Seconds count from the video's first frame, or from the first of its part."""

    starts: np.ndarray  # float64 [W], seconds
    ends: np.ndarray  # float64 [W], seconds
    firsts: np.ndarray  # int64 [W]: number of the first frame in the video
    counts: np.ndarray  # int64 [W]: frames, at least one
    duration: float  # seconds of the video or part

    def __len__(self) -> int:
        return len(self.starts)


def plan_windows(
    found: FrameTimes, window: float | None, hop: float | None, start: int = 0, frames: int | None = None
) -> Windows:
    """Windows of `window` seconds, one each `hop` seconds; the last one ends at the video's end. None: one window over all.

    A window has the frames from the one nearest to its start to the one before the frame nearest to its end, by the
    frames' own times. `start`, `frames`: of a part of the video. Raises DecodeError for more than MAX_WINDOWS windows.
    """
    end = len(found.seconds) if frames is None else min(start + frames, len(found.seconds))
    if start >= end:
        raise DecodeError(f"its part begins at frame {start}; the video has {len(found.seconds)} frames")
    borders = np.append(found.seconds, found.duration)[start : end + 1]
    borders, count = borders - borders[0], end - start
    duration = float(borders[-1])
    half_frame = duration / count / 2  # a rest that is shorter makes no window of its own
    if window is None or duration <= window + half_frame:
        starts, ends = np.zeros(1), np.array([duration])
    else:
        number = (
            int((duration - window + half_frame) / hop) + 1 if (duration - window) / hop < MAX_WINDOWS else MAX_WINDOWS
        )
        if number >= MAX_WINDOWS:
            raise DecodeError(
                f"a hop of {hop:g} s makes more than {MAX_WINDOWS} windows of {duration:g} s: take a longer hop"
            )
        starts = np.arange(number) * hop
        ends = np.minimum(starts + window, duration)
        if ends[-1] < duration - half_frame:
            starts, ends = np.append(starts, duration - window), np.append(ends, duration)
        ends[-1] = duration
    first = np.minimum(nearest(borders, starts), count - 1)
    counts = np.maximum(nearest(borders, ends) - first, 1)
    return Windows(starts, ends, first + start, counts, duration)
