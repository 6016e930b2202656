"""Frames by PyAV: from the start of a video, or from the nearest packets at which decoding can start."""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import groupby

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from stages.video.container import Timeline, open_video, read_packets, read_timeline
from stages.video.errors import DecodeError, short_reason


def decode_from_start(data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Frames of the indices `wanted` (sorted, unique), uint8 [T,H,W,3] upright RGB. Exact for every container and codec.

    All frames before the last wanted one are decoded; only the wanted ones are converted to RGB."""
    indices, frames, index = wanted.tolist(), [], -1
    with open_video(data) as (container, stream):
        for index, frame in enumerate(whole_frames(container.decode(stream))):
            if index == indices[len(frames)]:
                frames.append(upright(frame))
                if len(frames) == len(indices):
                    return np.stack(frames)
    raise DecodeError(f"frame {indices[-1]} was asked for; the video has {index + 1} frames")


def can_seek(timeline: Timeline, times: list[int | None]) -> bool:
    """Whether each packet gives the frame of its time, as `decode_by_seeking` needs it. `times`: of all frames, decoded."""
    unique = None not in timeline.times and len(set(timeline.times)) == len(timeline.times)
    return unique and timeline.starts is not None and timeline.starts[:1] == [0] and times == timeline.shown


def decode_by_seeking(data: bytes, wanted: np.ndarray) -> np.ndarray:
    """As `decode_from_start`, for a video that passed `can_seek`. Decodes only the groups that hold wanted frames.

    Frame i is the one with the i-th smallest time of the packets. All packets are read, which costs little; so the
    container's index isn't needed. Raises DecodeError if another frame comes out than the packets say.
    """
    with open_video(data) as (container, stream):
        packets = read_packets(container, stream)
        timeline = read_timeline(container, stream, packets)
        if wanted[-1] >= len(timeline.shown):
            raise DecodeError(f"frame {wanted[-1]} was asked for; the video has {len(timeline.shown)} frames")
        if not timeline.starts:
            raise DecodeError("no packet at which decoding can start")
        frames: dict[int, np.ndarray] = {}
        for start, indices in _groups(timeline, wanted.tolist()):
            for index, frame in _decode_group(stream, packets, timeline, start, indices[-1]):
                if index in indices:
                    frames[index] = upright(frame)
    return np.stack([frames[index] for index in wanted.tolist()])


def _groups(timeline: Timeline, wanted: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The packet at which to start, and the frames to decode from it.

    A frame is always decoded from the same packet, whatever else is wanted. So its pixels can't depend on that.
    """
    position = {time: i for i, time in enumerate(timeline.times)}

    def start_of(index: int) -> int:
        time = timeline.shown[index]
        before = timeline.starts[: bisect_right(timeline.starts, position[time])]
        start = next((s for s in reversed(before) if timeline.times[s] <= time), None)
        if start is None:
            raise DecodeError(f"no packet before frame {index} at which decoding can start")
        return start

    return ((start, list(indices)) for start, indices in groupby(wanted, start_of))


def has_open_groups(timeline: Timeline) -> bool:
    """Whether frames that are coded after a start are shown before it. They refer to pictures before the start."""
    return any(timeline.times[start] != timeline.shown[start] for start in timeline.starts or ())


def groups_agree(data: bytes, digests: list[int]) -> bool:
    """Whether each frame, decoded from its start, has the `digest` that it had when all were decoded from the first on.

    In open groups of pictures, damage that no decoder notices may make a frame refer to one before its start.
    """
    with open_video(data) as (container, stream):
        packets = read_packets(container, stream)
        timeline = read_timeline(container, stream, packets)
        try:
            return all(
                digest(frame) == digests[index]
                for start, indices in _groups(timeline, list(range(len(digests))))
                for index, frame in _decode_group(stream, packets, timeline, start, indices[-1])
            )
        except DecodeError:
            return False


def digest(frame: av.VideoFrame) -> int:
    """The crc32 of a frame's pixels."""
    return zlib.crc32(upright(frame))


def _decode_group(
    stream: av.VideoStream, packets: list[av.Packet], timeline: Timeline, start: int, last: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames from packet `start` to frame `last`, with their indices."""
    index = bisect_left(timeline.shown, timeline.times[start])  # an edit list may hide the start itself
    first_time = timeline.shown[index]
    for frame in whole_frames(decoded(stream, packets[start:])):
        if frame.pts is None or frame.pts < first_time:
            continue  # leading frames need pictures before the start
        if frame.pts != timeline.shown[index]:
            raise DecodeError(f"frame {index} does not come out of its packet")
        yield index, frame
        if index == last:
            return
        index += 1
    raise DecodeError(f"the packets end before frame {last}")


def decoded(stream: av.VideoStream, packets: list[av.Packet]) -> Iterator[av.VideoFrame]:
    """The frames of these packets, by a decoder that knows nothing of those before them."""
    stream.codec_context.flush_buffers()
    for packet in packets:
        yield from stream.decode(packet)
    yield from stream.decode(None)


def whole_frames(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames. Raises DecodeError at the first one that is damaged, or where decoding ends with an error."""
    index = 0
    try:
        for frame in frames:
            if frame.is_corrupt:
                raise DecodeError(f"frame {index} is damaged")
            yield frame
            index += 1
    except av.FFmpegError as error:
        raise DecodeError(f"nothing can be decoded after {index} frames ({short_reason(error)})") from error


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The frame as players show it, uint8 [H,W,3] RGB. Raises DecodeError for a matrix that turns by no right angle."""
    pixels = frame.to_ndarray(format="rgb24", threads=1)  # by default each frame starts a thread for each core
    swap, mirror_x, mirror_y = orientation(frame)
    if swap:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


def is_mirrored(data: bytes) -> bool:
    """Whether the video's display matrix mirrors its frames. Raises DecodeError if its first frame can't be decoded."""
    with open_video(data) as (container, stream):
        return mirrors(next(whole_frames(container.decode(stream))))


def mirrors(frame: av.VideoFrame) -> bool:
    """Whether the frame's display matrix mirrors it; a turn alone does not."""
    swap, mirror_x, mirror_y = orientation(frame)
    return swap == (mirror_x == mirror_y)


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether the frame's display matrix swaps x and y, and whether the result is mirrored in x and in y.

    The matrix takes (p, q) to (a*p + c*q, b*p + d*q), with a, b, c, d at 0, 1, 3, 4 of its nine numbers (ISO 14496-12,
    section 6.2.2). `frame.rotation` would lose the mirror.
    """
    # Not `frame.side_data`: it and its frame hold each other, and so hundreds of frames stay in memory for some time.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 100 * max(abs(b), abs(c)):
        return False, a < 0, d < 0
    if crossed > 100 * max(abs(a), abs(d)):
        return True, c < 0, b < 0
    raise DecodeError(f"its display matrix ({a}, {b}, {c}, {d}) turns by no right angle")
