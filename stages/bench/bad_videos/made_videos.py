"""Small real videos, encoded on the spot, for the bench of bad videos and for tests. Frames can show their number."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

FPS = 8
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # display matrices (a, b, c, d)


def encode_video(
    frames: np.ndarray,
    fps: int = 8,
    container: str = "mp4",
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    rotation: int = 0,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    pixel_format: str | None = None,
    muxer: dict[str, str] | None = None,
) -> bytes:
    """Encodes uint8 [N, H, W, 3] RGB (H and W even) as a whole file of any container that FFmpeg writes.

    `rotation`, mp4 and mov only: the multiple of 90 degrees clockwise by which a player turns the stored frames.
    `pts`: increasing times in units of 1/fps for a variable frame rate; 0, 1, 2, … otherwise.
    `options`: of the encoder; nearly lossless for libx264 by default, so that colours can be told apart. `muxer`: options
    of the container.
    """
    if options is None:
        options = {"crf": "6", "preset": "ultrafast", "bf": str(b_frames)} if codec == "libx264" else {}
    file = io.BytesIO()
    with av.open(file, "w", format={"mkv": "matroska"}.get(container, container), options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = i if pts is None else pts[i], Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return with_matrix(file.getvalue(), *TURNS[rotation]) if rotation else file.getvalue()


def numbered_frames(n: int, h: int = 64, w: int = 96) -> np.ndarray:
    """uint8 [n, h, w, 3], n ≤ 256: each frame shows its own number in binary, eight black or white vertical bars."""
    bits = (np.arange(n)[:, None] >> np.arange(7, -1, -1)) & 1
    bars = bits[:, np.arange(w) * 8 // w].astype(np.uint8) * 255
    return np.broadcast_to(bars[:, None, :, None], (n, h, w, 3)).copy()


def coded(n=40, size=(64, 96), codec="libx264", options=None, gop=12, first=0) -> list[av.Packet]:
    """The packets of an encoder, without a container. `first`: the time of the first frame."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt = *size, "yuv420p"
    encoder.time_base, encoder.gop_size, encoder.thread_count = Fraction(1, FPS), gop, 1
    encoder.options = {"crf": "6", "preset": "ultrafast", **(options or {})}
    packets = []
    for i, pixels in enumerate(numbered_frames(first + n, *size)[first:]):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = first + i, Fraction(1, FPS)
        packets += encoder.encode(frame)
    return packets + encoder.encode(None)


def remuxed(data: bytes, container: str, keep=lambda i, packet: True, bitstream_filter: str | None = None) -> bytes:
    """The packets that `keep` wants, in a new file; nothing is encoded again."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=container) as output:
        stream = source.streams.best("video")
        copy = output.add_stream_from_template(stream)
        work = BitStreamFilterContext(bitstream_filter, stream) if bitstream_filter else None
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        kept = [packet for i, packet in enumerate(packets) if keep(i, packet)]
        for packet in [made for p in [*kept, None] for made in work.filter(p)] if work else kept:
            packet.stream = copy
            output.mux(packet)
    return file.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 with this display matrix in its first track header (ISO 14496-12, `tkhd` version 0)."""
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + matrix + data[start + len(matrix) :]
