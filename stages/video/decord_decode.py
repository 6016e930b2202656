"""Frames by decord, which is fast, and which serves only files in which its seeking is exact."""

from __future__ import annotations

import io
import os
from itertools import pairwise

import numpy as np

from stages.video.claims import FIRST_BOXES
from stages.video.container import Timeline
from stages.video.errors import DecodeError
from stages.video.silence import silent_stderr

# decord's library reads this variable when it loads. By default, decord returns an earlier frame for one that it can't get.
os.environ["DECORD_REWIND_RETRY_MAX"] = "0"
try:
    import decord
except (ImportError, OSError):  # no wheel for this platform, or the wheel's library doesn't load
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)  # the log only repeats errors that are raised

# decord's smallest threshold for the share of lost frames: with it, the first lost frame raises.
NO_LOST_FRAME = 1e-9
INDEXED = ("mov,", "matroska,", "avi")  # containers with a table of their key frames
EIGHT_BIT = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray", "rgb24", "bgr24", "bgr0", "pal8",
             "yuv410p", "yuv411p", "rgba", "bgra", "gbrp", "yuva420p", "nv12")  # fmt: skip


def why_not_exact(timeline: Timeline, container: str, pixel_format: str | None, uniform: bool) -> str | None:
    """Why decord's frames would not be the right ones; None if nothing in the packets says so.

    decord takes a key frame's place in coding order for the frame's place in time, and starts to decode at it. So the
    video must begin with a key frame; at every key frame, packet k must be frame k; and decoding must be able to start
    there, whether the packets or the container's index mark it. decord also squeezes frames of a later size into the
    first one's. `container`: FFmpeg's name of the format. `uniform`: see `is_uniform`.
    """
    if not container.startswith(INDEXED):
        return f"a seek in a container without an index ({container}) may miss its place"
    if None in timeline.times or len(set(timeline.times)) < len(timeline.times):
        return "packets without a time of their own"
    if hidden := len(timeline.times) - len(timeline.shown):
        return f"an edit list hides {hidden} packets"
    if not timeline.keys or timeline.keys[0] > 0:
        return "the video does not begin with a key frame"
    if any(timeline.times[key] != timeline.shown[key] for key in timeline.keys):
        return "a key frame is coded before frames that are shown earlier (open group of pictures)"
    if timeline.starts is not None and (false := sorted({*timeline.keys} - {*timeline.starts})):
        return f"packet {false[0]} is marked as a key frame, but decoding can't start there"
    if not timeline.index_agrees:
        return "the container's index marks a key frame where there is none"
    if not uniform:
        return "its headers change on the way, and maybe the size of its frames"
    if pixel_format not in EIGHT_BIT:
        return f"pixels of the format {pixel_format}: the decoders differ above 8 bits"
    return None


def first_middle_last(data: bytes, timeline: Timeline) -> np.ndarray:
    """Frames 0, n // 2 and n - 1 of n, uint8 [3,H,W,3]. Raises DecodeError if decord counts or times the frames otherwise."""
    with silent_stderr():
        return _first_middle_last(data, timeline)


def _first_middle_last(data: bytes, timeline: Timeline) -> np.ndarray:
    reader = _open(data)
    count = len(reader)
    if count != len(timeline.times):
        raise DecodeError(f"it counts {count} frames where the file holds {len(timeline.times)}")
    starts = reader.get_frame_timestamp(np.arange(count))[:, 0]
    # decord's older FFmpeg finds no times in some AVI files; decord then sorts garbage.
    if not (np.abs(starts) < 1e9).all() or any(b < a for a, b in pairwise(starts.tolist())):
        raise DecodeError("it finds no times in this container")
    wanted, places = np.unique([0, count // 2, count - 1], return_inverse=True)
    return reader.get_batch(wanted).asnumpy()[places]


def decode(data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Frames of the indices `wanted`, which are sorted and unique: decord then never seeks back."""
    with silent_stderr():
        reader = _open(data)
        if wanted[-1] >= len(reader):
            raise DecodeError(f"frame {wanted[-1]} was asked for; the video has {len(reader)} frames")
        return reader.get_batch(wanted).asnumpy()


def _open(data: bytes) -> decord.VideoReader:
    """A reader of a file in memory. decord doesn't check the end of bytes, and a damaged header makes it read beyond."""
    if not _is_container(data):  # decord has no list of allowed formats: it would open the files that a playlist names
        raise DecodeError("it does not begin like a video file")
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


def _is_container(data: bytes) -> bool:
    """Whether the first bytes are those of a container of `CONTAINERS`. Playlists (HLS, concat) begin with text."""
    marks = (b"\x1a\x45\xdf\xa3", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\0\0\1\xba", b"GIF8")
    is_avi = data[:4] == b"RIFF" and data[8:11] == b"AVI"
    is_transport_stream = any(
        data[i : i + 1] == data[i + step : i + step + 1] == b"G" for i, step in ((0, 188), (4, 192))
    )
    return data[:8].startswith(marks) or data[4:8] in FIRST_BOXES or is_avi or is_transport_stream
