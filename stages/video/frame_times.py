"""The times of a video's frames, found in one pass that keeps no packet and no picture: for videos of any length."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.video.claims import MAX_FRAMES
from stages.video.container import check_duration, open_video
from stages.video.errors import DecodeError
from stages.video.h264_frame_numbers import GapFinder
from stages.video.picture_types import SIZED, is_start, shows_one_picture
from stages.video.pyav_decode import upright, whole_frames

TOLD_BY_PACKETS = SIZED - {"vp8"}  # codecs whose packets say whether they give a frame; VP8 hides some
STEP = 32  # frames, or 8 times as many packets, between two signs of life


@dataclass(frozen=True)
class FrameTimes:
    """The frames of a video. `width` and `height`: of the upright first frame, px."""

    seconds: np.ndarray  # float64 [N]: of each frame from the first one on, increasing
    times: (
        np.ndarray | None
    )  # int64 [N]: the same in the stream's units, as decoded frames have them; None if they have none
    duration: float  # seconds
    width: int
    height: int

    def index_of(self, time: int | None, count: int) -> int:
        """The number of a decoded frame: by its time in the stream's units; without times, `count`, the frames before it."""
        if self.times is None or time is None:
            return count
        return int(np.searchsorted(self.times, time, "right")) - 1


def frame_times(data: bytes | mmap.mmap, threads: int = 1) -> Iterator[FrameTimes | None]:
    """Yields None now and then, so that the caller can watch the time, and at last the FrameTimes.

    Where each packet gives one frame, the packets are read and only the first frame is decoded; else all are. The memory is
    8 bytes a frame. `threads`: of the decoder. Raises DecodeError.
    """
    with open_video(data) as (container, stream):
        first = next(whole_frames(container.decode(stream)), None)
        if first is None:
            raise DecodeError("no frame comes out of its packets")
        height, width = upright(first).shape[:2]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    yield None
    found = yield from _of_packets(data)
    if found is None:
        found = yield from _of_frames(data, threads)
    times, unit, end, count = found
    if times is None:
        yield FrameTimes(np.arange(count) / (rate or 1.0), None, count / (rate or 1.0), width, height)
        return
    seconds = (times - times[0]) * unit
    # Without a duration of the last packet, the last frame is as long as the others.
    duration = max((end - int(times[0])) * unit, float(seconds[-1]))
    if duration <= seconds[-1]:
        duration = seconds[-1] * count / (count - 1) if count > 1 else 1 / (rate or 1.0)
    check_duration(duration)
    yield FrameTimes(seconds, times, float(duration), width, height)


class _Found(NamedTuple):
    times: np.ndarray | None  # int64 [count], increasing; None if the frames have none
    unit: float  # seconds
    end: int  # of the last frame, in units
    count: int


def _of_packets(data: bytes | mmap.mmap) -> Generator[None, None, _Found | None]:
    """Returns what the packets tell of the frames; None if they don't tell."""
    times, end, position = array("q"), 0, -1
    with open_video(data) as (container, stream):
        codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
        if codec not in TOLD_BY_PACKETS or not stream.time_base:
            return None
        gaps = GapFinder(extradata) if codec == "h264" else None  # where a picture is missing, others may not come out
        for position, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            if packet.is_corrupt:
                raise DecodeError(f"it is cut short: packet {position} of the video is incomplete")
            if packet.pts is None or not shows_one_picture(codec, memoryview(packet), extradata):
                return None
            if not position and not is_start(codec, bytes(packet), extradata):
                return None
            if gaps and gaps.is_gap(memoryview(packet)):
                return None
            if not packet.is_discard:  # an edit list hides it
                times.append(packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
            _check_count(position)
            if position % (8 * STEP) == 0:
                yield None
        unit = float(stream.time_base)
    shown = np.sort(np.frombuffer(times, np.int64)) if times else np.zeros(0, np.int64)
    return _Found(shown, unit, end, len(shown)) if len(shown) and (np.diff(shown) > 0).all() else None


def _of_frames(data: bytes | mmap.mmap, threads: int) -> Generator[None, None, _Found]:
    """Returns what the decoded frames tell. Times that are not in the frames' order are none."""
    times, end, count, ordered = array("q"), 0, 0, True
    with open_video(data, threads) as (container, stream):
        for frame in whole_frames(container.decode(stream)):
            ordered = ordered and frame.pts is not None and (not times or frame.pts > times[-1])
            if ordered:
                times.append(frame.pts)
                end = frame.pts + (frame.duration or 0)
            count += 1
            _check_count(count)
            if count % STEP == 0:
                yield None
        unit = float(stream.time_base or 0)
    if not ordered or not unit:
        return _Found(None, 0.0, 0, count)
    return _Found(np.frombuffer(times, np.int64), unit, end, count)


def _check_count(count: int) -> None:
    if count > MAX_FRAMES:
        raise DecodeError(f"more than {MAX_FRAMES} frames; that many are read at most")


def nearest(borders: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each time the number of the border that is nearest, int64; the later one of two equally near. Borders increase."""
    after = np.searchsorted(borders, times).clip(1, max(1, len(borders) - 1))
    if len(borders) == 1:
        return np.zeros(len(times), np.int64)
    return np.where(borders[after] - times <= times - borders[after - 1], after, after - 1)
