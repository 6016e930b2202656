"""A video file in memory: opened by PyAV, with limits; and its packets' times, in coded order."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import av.stream

from stages.video.claims import MAX_FRAMES, check_claims
from stages.video.errors import DecodeError, short_reason
from stages.video.mapped_file import BufferReader
from stages.video.picture_types import SIZED, extradata_layout, frame_layout, is_start

av.logging.set_level(None)

# Still images, text and playlists (HLS, DASH, concat) are left out on purpose: a playlist makes FFmpeg open other files
# and addresses.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"
# Limits on what a file claims. They are checked before memory is taken for it.
MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
MAX_SECONDS = 7 * 24 * 3600
AVI_CHUNK_HEAD = 8  # bytes


@dataclass(frozen=True)
class Timeline:
    """The video stream's packets, in coded order; nothing is decoded for it. Times are in the stream's units."""

    times: list[int | None]  # presentation time of each packet
    shown: list[int]  # the times of the packets that an edit list doesn't hide, sorted
    keys: list[int]  # positions of the packets that the container marks as key frames, in the packets or in its index
    index_agrees: bool  # every key frame of the container's index is a packet, at the place that the index names
    starts: list[int] | None  # the keys at which decoding can start; None if the codec's packets aren't known
    fps: float  # the container's average rate
    duration: float  # seconds
    unit: Fraction  # seconds


@contextmanager
def open_video(
    data: bytes | mmap.mmap, threads: int = 1
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its best video stream, as av_find_best_stream finds it. Raises DecodeError.

    `threads`: of the decoder; several give the same frames. `data`: a file in memory, or one of `map_file`.
    """
    check_claims(data)
    options = {"format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
    try:
        file = io.BytesIO(data) if isinstance(data, bytes) else BufferReader(data)
        opened = av.open(file, metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        raise DecodeError(
            f"{len(data)} bytes that do not open as one of {CONTAINERS} ({short_reason(error)})"
        ) from error
    with opened as container:
        stream = container.streams.best("video")
        if stream is None:
            raise DecodeError("it has no video stream")
        if stream.disposition & av.stream.Disposition.attached_pic:
            raise DecodeError("its only picture is a cover image")
        if stream.codec_context is None:
            raise DecodeError("its video codec is not known")
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise DecodeError(f"frames of {codec.width}x{codec.height} px; at most {MAX_PIXELS} pixels are decoded")
        check_duration((container.duration or 0) / 1e6)
        codec.thread_count = threads
        if threads > 1:
            codec.thread_type = "AUTO"
        codec.flags |= av.codec.context.Flags.unaligned  # without it, a crop on the left is rounded
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        if codec.codec.canonical_name != "h264":  # its frames say that they are damaged; those of other codecs do not
            codec.options |= {"err_detect": "explode"}
        yield container, stream


def check_duration(seconds: float) -> None:
    """Raises DecodeError if a video claims more than a week."""
    if seconds > MAX_SECONDS:
        raise DecodeError(f"it claims {seconds / 3600:.0f} hours; at most {MAX_SECONDS // 3600} are read")


def read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.Packet]:
    """All packets of the video stream, in coded order. Raises DecodeError for a packet that the file cuts."""
    packets = []
    for packet in container.demux(stream):
        if not packet.size:  # the end
            continue
        if packet.is_corrupt:
            raise DecodeError(f"it is cut short: packet {len(packets)} of the video is incomplete")
        packets.append(packet)
        if len(packets) > MAX_FRAMES:
            raise DecodeError(f"more than {MAX_FRAMES} frames; that many are read at most")
    if not packets:
        raise DecodeError("its video stream is empty")
    return packets


def read_timeline(container: av.container.InputContainer, stream: av.VideoStream, packets: list[av.Packet]) -> Timeline:
    """The times and key frames of the packets that `read_packets` gave. The container may be read no further after it."""
    times = [packet.pts for packet in packets]
    shown = [packet for packet in packets if packet.pts is not None and not packet.is_discard]
    rate, unit = stream.average_rate or stream.guessed_rate, stream.time_base or Fraction(1)
    seconds = 0.0
    if shown:
        seconds = float((max(p.pts + (p.duration or 0) for p in shown) - min(p.pts for p in shown)) * unit)
    check_duration(seconds)
    fps = float(rate) if rate else len(times) / seconds if seconds > 0 else 0.0
    marked = _marked_in_index(container, stream, packets)
    keys = sorted({i for i, packet in enumerate(packets) if packet.is_keyframe} | marked - {-1})
    starts = _starts(stream, packets, keys)
    duration = seconds if seconds > 0 else len(times) / fps if fps else 0.0
    return Timeline(times, sorted(p.pts for p in shown), keys, -1 not in marked, starts, fps, duration, unit)


def _marked_in_index(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[av.Packet]
) -> set[int]:
    """Positions of the packets that the container's index marks as key frames; -1 if it marks what is none.

    A decoder seeks by this index. Matroska's, the Cues, is read at the first seek. Until then FFmpeg has an index of the
    packets that it read, with which the Cues must agree.
    """
    if container.format.name.startswith("matroska"):
        read = {(entry.timestamp, entry.pos) for entry in stream.index_entries}
        try:
            container.seek(0, stream=stream)
        except av.FFmpegError:
            return {-1}
        return set() if read >= {(entry.timestamp, entry.pos) for entry in stream.index_entries} else {-1}
    if container.format.name == "avi":  # where chunks are missing or moved, a seek by the index reads from wrong places
        places = {(entry.timestamp, entry.pos + AVI_CHUNK_HEAD) for entry in stream.index_entries}
        if not places.issuperset((packet.dts, packet.pos) for packet in packets):
            return {-1}
    positions = {packet.pts: i for i, packet in enumerate(packets)} | {
        packet.dts: i for i, packet in enumerate(packets)
    }
    return {positions.get(entry.timestamp, -1) for entry in stream.index_entries if entry.is_keyframe}


def _starts(stream: av.VideoStream, packets: list[av.Packet], keys: list[int]) -> list[int] | None:
    """`starts` of a Timeline."""
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    if codec not in SIZED:
        return None
    starts = [key for key in keys if is_start(codec, bytes(packets[key]), extradata)]
    # In VP8, damage isn't seen, and behind a key frame it may show something of the pictures before it.
    return starts[:1] if codec == "vp8" else starts


def is_uniform(stream: av.VideoStream, packets: list[av.Packet], keys: list[int]) -> bool:
    """Whether the headers (parameter sets, sizes) of the first packet serve for all. `keys`: of the Timeline."""
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    if any(packets[key].has_sidedata("new_extradata") for key in keys):
        return False
    if codec not in SIZED:
        return True
    heads = packets if codec in ("h264", "hevc") else [packets[key] for key in keys]  # these send sets at any picture
    layouts = [frame_layout(codec, bytes(head), extradata) for head in heads]
    first = extradata_layout(codec, extradata) or next(filter(None, layouts), frozenset())
    return all(layout <= first for layout in layouts)
