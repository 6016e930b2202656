"""Encoded video in, upright RGB frames out.

"Frame i" must be the same picture, whatever other frames are requested: teacher and student, or two epochs, request
different frames. It is the i-th frame that FFmpeg shows when it decodes the whole video from its start, turned and
mirrored as its display matrix says. `probe` finds out how these frames can be had:

    "decord"      decord's seeking is exact in this file (decord_decode.py says when)
    "pyav-seek"   PyAV starts at the packets from which decoding can start; each packet gives the frame of its time
    "pyav"        PyAV decodes from the start, which is exact for every file

Colours: FFmpeg's swscale makes RGB by the range (full or limited) and the matrix that the file names; by limited and
BT.601 if it names none. Above 8 bits the decoders differ, so that PyAV alone serves. README.md says more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import av
import numpy as np

from stages.video import decord_decode
from stages.video.container import Timeline, is_uniform, open_video, read_packets, read_timeline
from stages.video.errors import DecodeError, short_reason
from stages.video.frame_times import nearest
from stages.video.h264_frame_numbers import first_gap
from stages.video.picture_types import SIZED, shows_one_picture
from stages.video.pyav_decode import (
    can_seek,
    decode_by_seeking,
    decode_from_start,
    decoded,
    digest,
    groups_agree,
    has_open_groups,
    mirrors,
    orientation,
    upright,
    whole_frames,
)

RULES = 2  # of what frame i is, and which files are refused; raised when a version decides otherwise for any file
MAX_DIFFERENCE = 2.0  # grey levels on average between the decoders' last frames; they are equal on all 8-bit files seen


@dataclass(frozen=True)
class VideoInfo:
    """A video as its decoder sees it. Width and height are those of the upright frame in px; duration is in seconds."""

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    decoder: Literal["decord", "pyav-seek", "pyav"]
    fallback: str | None  # why decord was not used


@dataclass(frozen=True)
class _Probed:
    info: VideoInfo
    seconds: np.ndarray  # float64 [frames]: the time of each frame, from the first one on
    times: list[int | None]  # of each frame, in the stream's units


class PartError(DecodeError):
    """A part of a video begins after the video's end."""


def decoder_identity() -> str:
    """This machine's preferred decoder, as caches record it: "decord 0.6.0", or "pyav 18.1.0" without decord."""
    if decord_decode.decord is None:
        return f"pyav {av.__version__}"
    return f"decord {decord_decode.decord.__version__}"


def probe(data: bytes, *, every_frame: bool = False) -> VideoInfo:
    """Choose the decoder for a video, and decode enough frames to trust this decoder with any frame.

    For decord, the first, middle and last frame are decoded, and the last group of pictures; `every_frame`: all frames.
    PyAV always decodes every frame, since it can't count frames without decoding. Raises DecodeError, with both
    decoders' reasons, if the file is unreadable, ends within a frame, holds damaged frames among those decoded, or
    changes the size of its frames. (A cut Matroska file whose last packets are whole counts as a shorter video.)
    """
    return _probe(data, every_frame).info


def probe_part(data: bytes, start: float, end: float, *, every_frame: bool = False) -> tuple[VideoInfo, int, float]:
    """As `probe`, for the part from `start` to `end` (seconds): its VideoInfo, its first frame, the video's duration.

    The frames' own times say which frames these are: those from the frame nearest to `start` to the one before the
    frame nearest to `end`; at least one. Raises PartError if the part begins after the end of the video.
    """
    probed = _probe(data, every_frame)
    info = probed.info
    if start >= info.duration:
        raise PartError(
            f"the part from {start:g} to {end:g} s begins after the end of the video, at {info.duration:.2f} s"
        )
    borders = np.append(probed.seconds, info.duration)
    first, last = nearest(borders, np.array([start, end])).tolist()
    first = min(first, info.frames - 1)
    part = replace(info, frames=max(1, last - first), duration=min(end, info.duration) - start)
    return part, first, info.duration


def decode_frames(data: bytes, indices: np.ndarray, decoder: str) -> tuple[np.ndarray, str]:
    """The frames of these indices, uint8 [T,H,W,3] upright RGB in the same order, and the decoder that served them.

    `indices`: [T] integers from 0 to frames - 1, in any order; a repeated one is decoded once. `decoder`: the one that
    `probe` chose for this video. If it fails nevertheless, PyAV decodes from the start, and the result names "pyav".
    Raises DecodeError for an index that the video doesn't have, and if no decoder can serve the frames.
    """
    wanted, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if not len(wanted) or wanted[0] < 0:
        raise DecodeError(f"{_frame_list(wanted)} were asked for; expected one or more indices from 0 on")
    reasons = []
    try:
        if decoder == "decord" and decord_decode.decord is not None:
            return _reordered(decord_decode.decode(data, wanted), inverse), "decord"
        if decoder == "pyav-seek":
            return _reordered(decode_by_seeking(data, wanted), inverse), "pyav-seek"
    except Exception as error:  # decord raises errors of many types
        reasons.append(f"{decoder}: {short_reason(error)}")
    try:
        return _reordered(decode_from_start(data, wanted), inverse), "pyav"
    except Exception as error:
        both = "; ".join((*reasons, f"PyAV: {short_reason(error)}"))
        raise DecodeError(f"{_frame_list(wanted)} can't be decoded: {both}") from error


def _probe(data: bytes, every_frame: bool) -> _Probed:
    reason = None
    try:
        with open_video(data) as (container, stream):
            packets = read_packets(container, stream)
            timeline = read_timeline(container, stream, packets)
            uniform = is_uniform(stream, packets, timeline.keys)
            format_name, pixel_format = container.format.name, stream.codec_context.pix_fmt
            reason = decord_decode.why_not_exact(timeline, format_name, pixel_format, uniform)
            if decord_decode.decord is None:
                reason = "it is not installed"
            if reason is None:
                reason = _why_damage_differs(stream, packets)
            if reason is None:
                reason, last = _why_groups_fail(stream, packets, timeline)
        if reason is None:
            reason, probed = _probe_decord(data, timeline, last)
        if reason is None and not every_frame:
            return probed
        return _probe_pyav(data, timeline, uniform, reason and f"decord: {reason}", None if reason else probed)
    except Exception as error:
        both = f"decord: {reason}; PyAV: {short_reason(error)}" if reason else short_reason(error)
        raise DecodeError(f"unreadable video: {both}") from error


def _probe_decord(data: bytes, timeline: Timeline, last: np.ndarray) -> tuple[str | None, _Probed | None]:
    """Why decord can't serve the video, or what it is. `last`: the last frame by PyAV."""
    try:
        frames = decord_decode.first_middle_last(data, timeline)
    except Exception as error:
        return short_reason(error), None
    if frames.shape[1:] != last.shape or np.abs(frames[-1].astype(np.int16) - last).mean() > MAX_DIFFERENCE:
        return "its last frame differs from PyAV's", None
    height, width = frames.shape[1:3]
    info = VideoInfo(len(timeline.times), timeline.fps, width, height, timeline.duration, "decord", None)
    return None, _Probed(info, _seconds(timeline.shown, timeline), timeline.shown)


def _why_damage_differs(stream: av.VideoStream, packets: list[av.Packet]) -> str | None:
    """Why damage may go unseen, and be shown by each decoder in its own way; None if nothing says so."""
    codec = stream.codec_context.codec.canonical_name
    if codec not in SIZED:
        return f"damage in {codec} may not be found, and the decoders show it differently"
    extradata = stream.codec_context.extradata or b""
    for position, packet in enumerate(packets):
        if not shows_one_picture(codec, memoryview(packet), extradata):
            return f"packet {position} may give no frame, or several"
    gap = first_gap(map(memoryview, packets), extradata) if codec == "h264" else None
    return None if gap is None else f"a picture is missing before packet {gap}"


def _why_groups_fail(
    stream: av.VideoStream, packets: list[av.Packet], timeline: Timeline
) -> tuple[str | None, np.ndarray | None]:
    """Why the packets from a key frame on don't give one frame each, or None and the last frame.

    The last group of pictures must decode to exactly the times of its packets (VP8's hidden frames and packed B-frames
    fail here).
    """
    last, frame, times, sizes = timeline.keys[-1], None, [], set()
    try:
        for frame in decoded(stream, packets[last:]):
            if frame.is_corrupt:
                return f"frame {timeline.shown.index(frame.pts)} is damaged", None
            times.append(frame.pts)
            sizes.add((frame.width, frame.height))
    except av.FFmpegError as error:
        return f"the packets from the last key frame on do not decode ({short_reason(error)})", None
    if frame is None or times != timeline.shown[last:]:
        return "the packets from the last key frame on do not give one frame each", None
    if len(sizes) > 1:
        return "its frames change size", None
    if mirrors(frame):
        return "its display matrix mirrors", None
    return None, upright(frame)


def _probe_pyav(
    data: bytes, timeline: Timeline, uniform: bool, fallback: str | None, by_decord: _Probed | None
) -> _Probed:
    """What PyAV finds when it decodes every frame. `by_decord`: what decord found; then PyAV only checks it."""
    times, sizes, digests, frame = [], set(), [], None
    is_open = by_decord is None and has_open_groups(timeline)
    with open_video(data) as (container, stream):
        for frame in whole_frames(container.decode(stream)):
            times.append(frame.pts)
            sizes.add((frame.width, frame.height, orientation(frame)))
            if is_open:
                digests.append(digest(frame))
        if frame is None:
            raise DecodeError("no frame comes out of its packets")
        if len(sizes) > 1:
            raise DecodeError("its frames change size or rotation on the way")
        height, width = upright(frame).shape[:2]
    if by_decord is not None:
        if times == by_decord.times:
            return by_decord
        fallback = f"decord: {len(times)} frames come out of {by_decord.info.frames} packets, or at other times"
    can = uniform and can_seek(timeline, times) and (not is_open or groups_agree(data, digests))
    decoder = "pyav-seek" if can else "pyav"
    info = VideoInfo(len(times), timeline.fps, width, height, timeline.duration, decoder, fallback)
    return _Probed(info, _seconds(times, timeline), times)


def _seconds(times: list[int | None], timeline: Timeline) -> np.ndarray:
    """The time of each frame from the first one on; from the average rate if the file gives no times, or unordered ones."""
    if None not in times and all(a < b for a, b in pairwise(times)):
        return (np.array(times) - times[0]) * float(timeline.unit)
    return np.arange(len(times)) / (timeline.fps or 1.0)


def _reordered(frames: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Frames in the order of the indices. No copy if they are in this order already: several views' frames are large."""
    return frames if np.array_equal(inverse, np.arange(len(frames))) else frames[inverse]


def _frame_list(frames: np.ndarray) -> str:
    """Frame numbers for messages, shortened: ten views of 32 frames would fill a screen."""
    numbers = frames.tolist()
    return f"frames {numbers if len(numbers) <= 16 else f'{min(numbers)} to {max(numbers)} ({len(numbers)} of them)'}"
