"""Real videos of the kinds that decoders get wrong, made on the spot. Every frame shows its number."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from tests.media import encode_video, numbered_frames

FPS = 8


def coded(n=40, size=(64, 96), codec="libx264", options=None, gop=12, repeat_headers=False, first=0) -> list[av.Packet]:
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


def false_sync_samples(codec="libx264") -> bytes:
    """An MP4 in which every packet counts as a key frame: it has no table of sync samples."""
    return encode_video(numbered_frames(40), codec=codec, gop=20).replace(b"stss", b"free")


def intra_refresh() -> bytes:
    """H.264 that is refreshed column by column: recovery points take the place of IDR pictures."""
    options = {"crf": "6", "bf": "0", "x264-params": "intra-refresh=1:keyint=12:min-keyint=1:scenecut=0"}
    return encode_video(numbered_frames(40), options=options)


def starts_on_nonkey(codec="libx264", container="matroska") -> bytes:
    """Cut so that the first three packets are no key frames; the next key frame is packet 12 of the source."""
    return remuxed(encode_video(numbered_frames(40), container="mkv", codec=codec), container, lambda i, _: i >= 9)


def size_change(container: str) -> bytes:
    """96x64, then 128x96 from frame 12 on, then 96x64 again, in one stream."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=FPS, options={"x264-params": "repeat-headers=1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        options = {"x264-params": "repeat-headers=1", "bf": "0"}
        for first, size in ((0, (64, 96)), (12, (96, 128)), (24, (64, 96))):
            for packet in coded(12, size, options=options, first=first):
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def cropped_left() -> bytes:
    """The header says that the 16 columns on the left are not shown: 80 of 96 remain."""
    whole = encode_video(numbered_frames(20), container="mpegts")
    return remuxed(whole, "mpegts", bitstream_filter="h264_metadata=crop_left=16")


def slow_then_fast() -> bytes:
    """Frames 0 to 49 in ten seconds, 50 to 149 in two."""
    times = [10 * i for i in range(50)] + [500 + i for i in range(100)]
    return encode_video(numbered_frames(150), fps=50, pts=times)


def damaged(data: bytes, packet: int) -> bytes:
    """The same file with the payload of one packet overwritten."""
    with av.open(io.BytesIO(data)) as source:
        found = [p for p in source.demux(source.streams.best("video")) if p.size][packet]
        begin, size = found.pos, found.size
    noise = np.random.default_rng(0).bytes(size - size // 3)
    return data[: begin + size // 3] + noise + data[begin + size :]


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 with this display matrix in its first track header (ISO 14496-12, `tkhd` version 0)."""
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + matrix + data[start + len(matrix) :]


def open_groups(codec="libx265", container="mp4", n=60) -> bytes:
    """Groups of pictures whose first pictures in time refer to the group before."""
    options = {
        "libx265": {"crf": "10", "preset": "ultrafast",
                    "x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:log-level=none"},
        "libx264": {"crf": "6", "x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
        "mpeg2video": {"bf": "2", "g": "12", "b": "4M"},
    }[codec]  # fmt: skip
    return encode_video(numbered_frames(n), codec=codec, container=container, options=options, gop=12, fps=25)
