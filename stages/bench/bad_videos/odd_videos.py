"""Real videos of the kinds that decoders get wrong, made on the spot. Every frame shows its number."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np

from stages.bench.bad_videos.made_videos import FPS, coded, encode_video, numbered_frames, remuxed, with_matrix


def false_sync_samples(codec="libx264") -> bytes:
    """An MP4 in which every packet counts as a key frame: it has no table of sync samples."""
    return encode_video(numbered_frames(40), codec=codec, gop=20).replace(b"stss", b"free")


def intra_refresh(container="mp4") -> bytes:
    """H.264 that is refreshed column by column: recovery points take the place of IDR pictures."""
    options = {"crf": "6", "bf": "0", "x264-params": "intra-refresh=1:keyint=12:min-keyint=1:scenecut=0"}
    return encode_video(numbered_frames(40), container=container, options=options)


def starts_on_nonkey(codec="libx264", container="matroska") -> bytes:
    """Cut so that the first three packets are no key frames; the next key frame is packet 12 of the source."""
    return remuxed(encode_video(numbered_frames(40), container="mkv", codec=codec), container, lambda i, _: i >= 9)


def written(container: str, codec: str, packets: list[bytes], extradata: bytes) -> bytes:
    """A file with these packets, each of them a key frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = _add_stream(output, (64, 96), codec)
        stream.codec_context.extradata = extradata
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, FPS)
            packet.is_keyframe = True
            output.mux(packet)
    return file.getvalue()


def _add_stream(output: av.container.OutputContainer, size: tuple[int, int], codec: str = "libx264") -> av.VideoStream:
    stream = output.add_stream(codec, rate=FPS)
    (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
    stream.codec_context.time_base = Fraction(1, FPS)
    return stream


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


def cropped_left(container="mpegts") -> bytes:
    """The header says that the 16 columns on the left are not shown: 80 of 96 remain."""
    whole = encode_video(numbered_frames(20), container="mpegts")
    return remuxed(whole, container, bitstream_filter="h264_metadata=crop_left=16")


def slow_then_fast(container="mp4") -> bytes:
    """Frames 0 to 49 in ten seconds, 50 to 149 in two."""
    times = [10 * i for i in range(50)] + [500 + i for i in range(100)]
    return encode_video(numbered_frames(150), fps=50, pts=times, container=container)


def other_picture_parameters(container="mp4") -> bytes:
    """H.264 with another picture parameter set from frame 24 on, which stands before frame 24 alone."""
    common = {"preset": "ultrafast", "bf": "0", "x264-params": "cabac=0:scenecut=0:keyint=12:min-keyint=12"}
    frames = numbered_frames(60)
    first, later = (
        encode_video(part, options=common | {"qp": qp}) for part, qp in ((frames, "24"), (frames[24:], "27"))
    )
    packets, extradata = _payloads(later)
    size = int.from_bytes(extradata[6:8], "big")  # of the sequence parameter set, before which 8 bytes stand
    pictures = extradata[9 + size :]  # bytes of the length, and the set

    def change(i: int, data: bytes) -> bytes:
        if i < 24:
            return data
        return (b"\0\0" + pictures if i == 24 else b"") + packets[i - 24]

    return _changed(first, container, change)


def not_coded(container="avi") -> bytes:
    """MPEG-4 whose packets 5 to 7 say that their picture is not coded: they give no frame."""

    def change(i: int, data: bytes) -> bytes:
        bits = f"010{1:b}{i:03b}1" + "0"  # a P picture; no whole second passes; its time; not coded
        return b"\0\0\1\xb6" + int(bits.ljust(16, "1"), 2).to_bytes(2, "big") if i in (5, 6, 7) else data

    return _changed(encode_video(numbered_frames(40), container="avi", codec="mpeg4", gop=20), container, change)


def _payloads(video: bytes) -> tuple[list[bytes], bytes]:
    with av.open(io.BytesIO(video)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        return packets, bytes(container.streams.video[0].codec_context.extradata)


def _changed(video: bytes, container: str, change: Callable[[int, bytes], bytes]) -> bytes:
    """The same stream in a new file, with other packets."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for i, old in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet = av.Packet(change(i, bytes(old)))
            packet.stream, packet.is_keyframe = stream, old.is_keyframe
            packet.pts, packet.dts, packet.duration, packet.time_base = old.pts, old.dts, old.duration, old.time_base
            output.mux(packet)
    return file.getvalue()


def damaged(data: bytes, packet: int) -> bytes:
    """The same file with the payload of one packet overwritten."""
    with av.open(io.BytesIO(data)) as source:
        found = [p for p in source.demux(source.streams.best("video")) if p.size][packet]
        begin, size = data.index(bytes(found)[:16]) if found.pos is None else found.pos, found.size
    noise = np.random.default_rng(0).bytes(size - size // 3)
    return data[: begin + size // 3] + noise + data[begin + size :]


def open_groups(codec="libx265", container="mp4", n=60) -> bytes:
    """Groups of pictures whose first pictures in time refer to the group before."""
    options = {
        "libx265": {"crf": "10", "preset": "ultrafast",
                    "x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:log-level=none"},
        "libx264": {"crf": "6", "x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
        "mpeg2video": {"bf": "2", "g": "12", "b": "4M"},
    }[codec]  # fmt: skip
    return encode_video(numbered_frames(n), codec=codec, container=container, options=options, gop=12, fps=25)


def without(container: str, lost: int) -> bytes:
    """H.264 whose packet `lost` of 40 is left out; its key frames are 0, 12, 24, 36."""
    return remuxed(encode_video(numbered_frames(40), container=container), container, lambda i, _: i != lost)


def with_sound(container: str) -> bytes:
    """A tone beside the pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = _add_stream(output, (64, 96))
        sound = output.add_stream("aac", rate=16000, layout="mono")
        for i, packet in enumerate(coded(24)):
            packet.stream = video
            output.mux(packet)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return file.getvalue()


def two_videos(container: str) -> bytes:
    """Two streams of pictures of different sizes."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        streams = [_add_stream(output, size) for size in ((64, 96), (96, 128))]
        for pair in zip(coded(24), coded(24, (96, 128)), strict=True):
            for stream, packet in zip(streams, pair, strict=True):
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


CONTAINERS = ("mp4", "mov", "3gp", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif")


def _coded(codec: str = "libx264", count: int = 24, options: dict | None = None, size=(64, 96), **more):
    """A maker of one kind: the same frames by this encoder, in any container."""
    return lambda container: encode_video(
        numbered_frames(count, *size), codec=codec, container=container, options=options, **more
    )


def _x264(parameters: str, **more):
    return _coded(options={"crf": "6", "x264-params": parameters}, **more)


KINDS = {
    "H.264": _coded(), "H.264, B frames": _coded(b_frames=3), "H.264, one frame": _coded(count=1),
    "H.264, two frames": _coded(count=2), "H.264, every frame a key": _coded(gop=1),
    "H.264, one key": _coded(count=60, gop=250), "H.264, open groups": lambda c: open_groups("libx264", c),
    "H.264, intra refresh": intra_refresh, "H.264, interlaced": _x264("interlaced=1"), "H.264, slices": _x264("slices=4"),
    "H.264, repeated headers": _x264("repeat-headers=1"), "H.264, lossless": _x264("qp=0", pixel_format="yuv444p"),
    "H.264, 4:2:2": _coded(pixel_format="yuv422p"), "H.264, 10 bits": _coded(pixel_format="yuv420p10le"),
    "H.264, grey": _coded(pixel_format="gray"), "H.264, full range": _coded(pixel_format="yuvj420p"),
    "H.264, odd size": _coded(size=(65, 97), pixel_format="yuv444p"),
    "H.264, begins with P frames": lambda c: starts_on_nonkey("libx264", c),
    "H.264, a picture lost": lambda c: without(c, 17), "H.264, a key frame lost": lambda c: without(c, 24),
    "H.264, a size that changes": size_change, "H.264, cropped on the left": cropped_left,
    "H.264, two rates": slow_then_fast, "H.264, a late start": _coded(pts=range(1000, 1024)),
    "H.264, an early start": _coded(pts=range(-5, 19)), "H.264, a gap in time": _coded(pts=[*range(12), *range(500, 512)]),
    "H.264, sound": with_sound, "H.264, two streams": two_videos,
    "H.264, damaged in the middle": lambda c: damaged(_coded(count=40)(c), 17),
    "H.264, damaged key frame": lambda c: damaged(_coded(count=40)(c), 24),
    "H.264, cut": lambda c: (data := _coded(count=40)(c))[: len(data) * 2 // 3],
    "H.264, twice in one file": lambda c: 2 * _coded()(c), "H.264, junk in front": lambda c: b"junk" * 47 + _coded()(c),
    "H.264, junk behind": lambda c: _coded()(c) + bytes(range(256)) * 8,
    "H.264, fragments": _coded(muxer={"movflags": "frag_keyframe+empty_moov", "live": "1"}),
    "H.264, index in front": _coded(muxer={"movflags": "faststart", "reserve_index_space": "2000", "cues_to_front": "1"}),
    "H.264, all marked as keys": lambda c: _coded(gop=20)(c).replace(b"stss", b"free"),
    "H.264, mirrored": lambda c: with_matrix(_coded()(c), -1, 0, 0, 1),
    "H.264, turned": lambda c: with_matrix(_coded()(c), 0, 1, -1, 0),
    "H.264, askew": lambda c: with_matrix(_coded()(c), 1, 1, -1, 1),
    "HEVC": _coded("libx265", options={"x265-params": "log-level=none"}),
    "HEVC, open groups": lambda c: open_groups("libx265", c),
    "HEVC, 10 bits": _coded("libx265", options={"x265-params": "log-level=none"}, pixel_format="yuv420p10le"),
    "VP8, hidden frames": _coded("libvpx", 40, {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "VP9, hidden frames": _coded("libvpx-vp9", 40, {"lag-in-frames": "16", "cpu-used": "8"}),
    "AV1": _coded("libsvtav1"), "MPEG-1": _coded("mpeg1video", fps=25), "MPEG-2": _coded("mpeg2video", fps=25),
    "MPEG-2, open groups": lambda c: open_groups("mpeg2video", c), "MPEG-4": _coded("mpeg4"),
    "MPEG-4, B frames": _coded("mpeg4", options={"bf": "2"}),
    "MPEG-4, all marked as keys": lambda c: _coded("mpeg4", gop=20)(c).replace(b"stss", b"free"),
    "MPEG-4, a damaged picture": lambda c: damaged(_coded("mpeg4", 40)(c), 17),
    "H.264, other parameters": other_picture_parameters, "MPEG-4, not coded": not_coded,
    "MPEG-4, MS": _coded("msmpeg4"), "H.263": _coded("h263", size=(144, 176), fps=25), "Sorenson": _coded("flv"),
    "WMV 1": _coded("wmv1"), "WMV 2": _coded("wmv2"), "MJPEG": _coded("mjpeg"), "PNG": _coded("png", pixel_format="rgb24"),
    "FFV1": _coded("ffv1"), "HuffYUV": _coded("huffyuv", pixel_format="yuv422p"),
    "ProRes": _coded("prores_ks", pixel_format="yuv422p10le"),
    "raw": _coded("rawvideo"), "QuickTime RLE": _coded("qtrle", pixel_format="rgb24"),
    "Cinepak": _coded("cinepak", pixel_format="rgb24"),
    "Ut Video": _coded("utvideo"), "GIF": _coded("gif", pixel_format="rgb8"),
}  # fmt: skip
IN_ISO_FILES = ("fragments", "marked as keys", "mirrored", "turned", "askew")  # kinds of MP4 and MOV alone


def made_kinds(each: int = 1) -> Iterator[tuple[str, str, bytes]]:
    """Each kind, or every so many-th, in each container that can hold it: names of both, and the file."""
    for kind, make in list(KINDS.items())[::each]:
        for container in CONTAINERS:
            if kind.endswith(IN_ISO_FILES) and container not in ("mp4", "mov", "3gp"):
                continue
            try:
                yield kind, container, make(container)
            except (av.FFmpegError, ValueError):  # FFmpeg writes no such packets into this container
                continue
