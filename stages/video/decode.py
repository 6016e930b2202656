"""Encoded video in, upright RGB frames out. The only file that decodes by decord and PyAV.

"Frame i" must be the same picture, whatever other frames are requested: teacher and student, or two epochs, request
different frames. decord 0.6 breaks this rule silently for some files. It takes a key frame's place in coding order for
the frame's place in time (wrong by the leading B-frames of an open group of pictures: x265's default, MPEG-4 in AVI).
It also replaces lost frames by their neighbours. Therefore `probe` first reads the packets' times, without decoding.
decord serves only files in which its seeking is exact. PyAV, which decodes from the start, serves the others.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import av
import av.stream
import numpy as np

from cache.errors import ReskdError

# decord's library reads this variable when it loads. By default, decord returns an earlier frame for one that it can't get.
os.environ["DECORD_REWIND_RETRY_MAX"] = "0"
try:
    import decord
except (ImportError, OSError):  # no wheel for this platform, or the wheel's library doesn't load
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)  # the log only repeats errors that are raised
av.logging.set_level(None)

# Still images, text and playlists (HLS, DASH, concat) are left out on purpose: a playlist makes FFmpeg open other files
# and addresses.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"
# decord's smallest threshold for the share of lost frames: with it, the first lost frame raises.
NO_LOST_FRAME = 1e-9
# Parts of decord's messages: clock time and source line, values of pointers, the name of the file in memory.
_VARYING_PARTS = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: |\(-?\d+ vs\. -?\d+\) ?|\[?/proc/self/fd/\d+\]?")


class DecodeError(ReskdError):
    """No decoder can serve these frames of a video. The caller adds the clip's name to the message."""


@dataclass(frozen=True)
class VideoInfo:
    """A video as its decoder sees it. Width and height are those of the upright frame in px; duration is in seconds."""

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    decoder: Literal["decord", "pyav"]
    fallback: str | None  # why decord was not used


@dataclass(frozen=True)
class _Timeline:
    """The video stream's packets, in coded order; nothing is decoded for it."""

    times: list[int | None]  # presentation times, in the stream's units
    keys: list[int]  # positions of the packets at which decoding can start
    discards: int  # packets that an edit list hides
    fps: float  # the container's average rate
    duration: float  # seconds


def decoder_identity() -> str:
    """This machine's preferred decoder, as caches record it: "decord 0.6.0", or "pyav 18.1.0" without decord."""
    return f"pyav {av.__version__}" if decord is None else f"decord {decord.__version__}"


def probe(data: bytes) -> VideoInfo:
    """Choose the decoder for a video, and decode enough frames to trust this decoder with any frame.

    decord is chosen if its seeking is exact; it decodes the first, middle and last frame. Otherwise PyAV decodes every
    frame, since it can't count frames without decoding. Raises DecodeError, with both decoders' reasons, if the file is
    unreadable or ends within a frame. (A cut Matroska file whose last packets are whole counts as a shorter video.)
    """
    reason = None
    try:
        timeline = _read_timeline(data)
        reason = "it is not installed" if decord is None else _why_seeking_fails(data, timeline)
        if reason is None:
            try:
                return _probe_decord(data, timeline)
            except Exception as error:
                reason = _short_reason(error)
        return replace(_probe_pyav(data, timeline), fallback=f"decord: {reason}")
    except Exception as error:
        both = f"decord: {reason}; PyAV: {_short_reason(error)}" if reason else _short_reason(error)
        raise DecodeError(f"unreadable video: {both}") from error


def decode_frames(data: bytes, indices: np.ndarray, decoder: str) -> tuple[np.ndarray, str]:
    """The frames of these indices, uint8 [T,H,W,3] upright RGB in the same order, and the decoder that served them.

    `indices`: [T] integers from 0 to frames - 1, in any order; a repeated one is decoded once. `decoder`: the one that
    `probe` chose for this video. If decord fails nevertheless, PyAV serves the frames, and the result names "pyav".
    Raises DecodeError for an index that the video doesn't have, and if no decoder can serve the frames.
    """
    wanted, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if not len(wanted) or wanted[0] < 0:
        raise DecodeError(f"{_frame_list(wanted)} were asked for; expected one or more indices from 0 on")
    reason = None
    if decoder == "decord" and decord is not None:
        try:
            return _reordered(_decord_frames(data, wanted), inverse), "decord"
        except DecodeError:  # no such frame
            raise
        except Exception as error:  # decord raises errors of many types
            reason = _short_reason(error)
    try:
        return _reordered(_pyav_frames(data, wanted), inverse), "pyav"
    except Exception as error:
        both = f"decord: {reason}; PyAV: {_short_reason(error)}" if reason else f"PyAV: {_short_reason(error)}"
        raise DecodeError(f"{_frame_list(wanted)} can't be decoded: {both}") from error


def _reordered(frames: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Frames in the order of the indices. No copy if they are in this order already: several views' frames are large."""
    return frames if np.array_equal(inverse, np.arange(len(frames))) else frames[inverse]


@contextmanager
def _open_video(data: bytes) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    options = {"format_whitelist": CONTAINERS}
    try:
        opened = av.open(io.BytesIO(data), metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        raise DecodeError(
            f"{len(data)} bytes that do not open as one of {CONTAINERS} ({_short_reason(error)})"
        ) from error
    with opened as container:
        stream = container.streams.best("video")  # av_find_best_stream, as decord does
        if stream is None:
            raise DecodeError("it has no video stream")
        if stream.disposition & av.stream.Disposition.attached_pic:
            raise DecodeError("its only picture is a cover image")
        if stream.codec_context is None:
            raise DecodeError("its video codec is not known")
        stream.codec_context.thread_count = 1
        yield container, stream


def _read_timeline(data: bytes) -> _Timeline:
    times, keys, spans, discards = [], [], [], 0
    with _open_video(data) as (container, stream):
        for packet in container.demux(stream):
            if not packet.size:  # the end
                continue
            if packet.is_corrupt:
                raise DecodeError(f"it is cut short: packet {len(times)} of the video is incomplete")
            if packet.is_keyframe:
                keys.append(len(times))
            if packet.pts is not None and not packet.is_discard:
                spans.append((packet.pts, packet.pts + (packet.duration or 0)))
            discards += packet.is_discard
            times.append(packet.pts)
        rate, unit = stream.average_rate or stream.guessed_rate, stream.time_base
    if not times:
        raise DecodeError("its video stream is empty")
    seconds = float((max(end for _, end in spans) - min(start for start, _ in spans)) * unit) if spans else 0.0
    fps = float(rate) if rate else len(times) / seconds if seconds > 0 else 0.0
    return _Timeline(times, keys, discards, fps, seconds if seconds > 0 else len(times) / fps if fps else 0.0)


def _why_seeking_fails(data: bytes, timeline: _Timeline) -> str | None:
    """Why decord's frame numbers would be wrong; None if they are right.

    They are right if two things hold. At every key frame, packet k is frame k. Each packet gives one frame: this is
    checked on the last group of pictures, which must decode to exactly the times of its packets (VP8's hidden frames,
    packed B-frames and intra refresh fail here).
    """
    if None in timeline.times or len(set(timeline.times)) < len(timeline.times):
        return "packets without a time of their own"
    if timeline.discards:
        return f"an edit list hides {timeline.discards} packets"
    shown = sorted(timeline.times)
    if not timeline.keys or any(timeline.times[key] != shown[key] for key in timeline.keys):
        return "a key frame is coded before frames that are shown earlier (open group of pictures)"
    last = timeline.keys[-1]
    with _open_video(data) as (container, stream):
        if last:
            container.seek(shown[last], stream=stream)
        try:
            times = [frame.pts for frame in container.decode(stream)]
        except av.FFmpegError as error:
            return f"the packets from the last key frame on do not decode ({_short_reason(error)})"
    if times[:1] != shown[last : last + 1]:
        return "a seek to the last key frame does not land there"
    return None if times == shown[last:] else "the packets from the last key frame on do not give one frame each"


def _probe_decord(data: bytes, timeline: _Timeline) -> VideoInfo:
    reader = _decord_reader(data)
    count = len(reader)
    if count != len(timeline.times):
        raise DecodeError(f"it counts {count} frames where the file holds {len(timeline.times)}")
    starts = reader.get_frame_timestamp(np.arange(count))[:, 0]
    # decord's older FFmpeg finds no times in some AVI files; decord then sorts garbage.
    if not (np.abs(starts) < 1e9).all() or any(b < a for a, b in pairwise(starts.tolist())):
        raise DecodeError("it finds no times in this container")
    height, width = reader.get_batch(sorted({0, count // 2, count - 1})).shape[1:3]
    return VideoInfo(count, timeline.fps, width, height, timeline.duration, "decord", None)


def _probe_pyav(data: bytes, timeline: _Timeline) -> VideoInfo:
    count, sizes, frame = 0, set(), None
    with _open_video(data) as (container, stream):
        for frame in _whole_frames(container, stream):
            count += 1
            sizes.add((frame.width, frame.height, frame.rotation))
        if frame is None:
            raise DecodeError("no frame comes out of its packets")
        if len(sizes) > 1:
            raise DecodeError("its frames change size or rotation on the way")
        height, width = _upright(frame).shape[:2]
    return VideoInfo(count, timeline.fps, width, height, timeline.duration, "pyav", None)


def _decord_reader(data: bytes) -> "decord.VideoReader":
    """A reader of a file in memory. decord doesn't check the end of bytes, and a damaged header makes it read beyond."""
    options = {"num_threads": 1, "fault_tol": NO_LOST_FRAME}
    if not hasattr(os, "memfd_create"):  # Windows
        return decord.VideoReader(io.BytesIO(data), **options)
    descriptor = os.memfd_create("clip")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        return decord.VideoReader(f"/proc/self/fd/{descriptor}", **options)
    finally:
        os.close(descriptor)


def _decord_frames(data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Frames of the indices `wanted`, which are sorted and unique: decord then never seeks back."""
    reader = _decord_reader(data)
    if wanted[-1] >= len(reader):
        raise DecodeError(f"frame {wanted[-1]} was asked for; the video has {len(reader)} frames")
    return reader.get_batch(wanted).asnumpy()


def _pyav_frames(data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Decode from the start, which is exact for every container and codec; convert only the wanted frames to RGB."""
    indices, frames, index = wanted.tolist(), [], -1
    with _open_video(data) as (container, stream):
        for index, frame in enumerate(_whole_frames(container, stream)):
            if index == indices[len(frames)]:
                frames.append(_upright(frame))
                if len(frames) == len(indices):
                    return np.stack(frames)
    raise DecodeError(f"frame {indices[-1]} was asked for; the video has {index + 1} frames")


def _frame_list(frames: np.ndarray) -> str:
    """Frame numbers for messages, shortened: ten views of 32 frames would fill a screen."""
    numbers = frames.tolist()
    return f"frames {numbers if len(numbers) <= 16 else f'{min(numbers)} to {max(numbers)} ({len(numbers)} of them)'}"


def _whole_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    index = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise DecodeError(f"frame {index} is damaged")
            yield frame
            index += 1
    except av.FFmpegError as error:
        raise DecodeError(f"nothing can be decoded after {index} frames ({_short_reason(error)})") from error


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation // 90) % 4))


def _short_reason(error: Exception) -> str:
    """An error's first line, without the parts that change from run to run: reasons are stored, and runs must be equal."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    text = _VARYING_PARTS.sub("", text.splitlines()[0])
    return text[:200]
