"""Bombs: small files that claim to be huge. Each must cost little, whether it is refused or served."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import av

from stages.bench.bad_videos.made_videos import FPS, coded, encode_video, numbered_frames
from stages.bench.bad_videos.odd_videos import written

HUGE = 10**9
MANY = 2**22  # as many as a long video has


def bombs() -> Iterator[tuple[str, bytes]]:
    """A name, and the file."""
    for container in ("mp4", "matroska", "avi", "mpegts", "flv"):
        yield f"65,536 x 65,536 px of H.264, {container}", huge_h264(container, 4096)
    yield "8,192 x 32,768 px of H.264, mpegts", huge_h264("mpegts", 512, 2048)
    yield from _huge_headers()
    yield from _iso_tables()
    yield from _durations()
    yield from _depths()
    yield from _lengths()


def huge_h264(container: str, width: int, height: int | None = None) -> bytes:
    """H.264 whose parameter set claims this many macroblocks of 16 px, with a slice of another video."""
    bits = "".join(_exponential(n) for n in (0, 0, 2, 1)) + "0"  # id, log2_max_frame_num, order, references, gaps
    bits += _exponential(width - 1) + _exponential((height or width) - 1) + "110010"  # frames, direct, crop, VUI, end
    sets = b"\0\0\0\1\x67\x42\x00\x3e" + _bytes(bits) + b"\0\0\0\1\x68" + _bytes("1100101111000111000011" + "1")
    slices = [bytes(packet) for packet in coded(40, options={"x264-params": "keyint=1"})]
    packets = [sets + b"\0\0\0\1\x65" + data.split(b"\0\0\1\x65")[-1] for data in slices]
    return written(container, "libx264", packets, sets)


def _exponential(number: int) -> str:
    """An unsigned Exp-Golomb code."""
    code = f"{number + 1:b}"
    return "0" * (len(code) - 1) + code


def _bytes(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\0\0", b"\0\0\3")


def _huge_headers() -> Iterator[tuple[str, bytes]]:
    """Sizes in the headers of containers and of codecs that have no parameter sets."""
    for codec, pixels in (("mpeg4", None), ("mjpeg", None), ("rawvideo", None), ("qtrle", "rgb24"), ("png", "rgb24"),
                          ("cinepak", "rgb24"), ("huffyuv", "yuv422p"), ("utvideo", None), ("ffv1", None)):  # fmt: skip
        for container in ("mov", "avi", "matroska"):
            try:
                data = encode_video(numbered_frames(4), codec=codec, container=container, pixel_format=pixels)
            except (av.FFmpegError, ValueError):
                continue
            yield f"65,535 x 65,535 px of {codec}, {container}", _with_huge_size(data, container)
    jpeg = encode_video(numbered_frames(4), codec="mjpeg", container="avi")
    yield "65,535 x 65,535 px in a JPEG, avi", jpeg.replace(b"\x00\x40\x00\x60\x03", b"\xff\xff\xff\xff\x03")
    png = encode_video(numbered_frames(4), codec="png", container="mov", pixel_format="rgb24")
    yield (
        "2^31 x 2^31 px in a PNG, mov",
        png.replace(struct.pack(">2I", 96, 64), struct.pack(">2I", 2**31 - 1, 2**31 - 1)),
    )
    webm = encode_video(numbered_frames(4), codec="libvpx", container="webm")
    yield (
        "16,383 x 16,383 px of VP8, webm",
        webm.replace(b"\x9d\x01\x2a\x60\x00\x40\x00", b"\x9d\x01\x2a\xff\x3f\xff\x3f"),
    )
    gif = encode_video(numbered_frames(4), codec="gif", container="gif", pixel_format="rgb8")
    yield "65,535 x 65,535 px, GIF", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]
    frame = gif.index(b"\x2c\0\0\0\0")
    whole = gif[:6] + b"\xff" * 4 + gif[10 : frame + 5] + b"\xff" * 4 + gif[frame + 9 :]
    yield "65,535 x 65,535 px in a frame of a GIF", whole


def _with_huge_size(data: bytes, container: str) -> bytes:
    if container == "avi":
        data = data.replace(struct.pack("<2I", 96, 64), struct.pack("<2I", 65535, 65535))
        return data.replace(struct.pack("<2H", 96, 64), struct.pack("<2H", 65535, 65535))
    if container == "mov":
        return data.replace(struct.pack(">2H", 96, 64), struct.pack(">2H", 65535, 65535))
    return data.replace(b"\xb0\x81\x60\xba\x81\x40", b"\xb0\x82\xff\xff\xba\x81\xff").replace(
        b"\xb0\x82\x00\x60\xba\x82\x00\x40", b"\xb0\x82\xff\xff\xba\x82\xff\xff"
    )


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _changed(kind: bytes, content: bytes, data: bytes) -> bytes:
    """The file with other content in its first box of this kind. The sizes of the boxes around it fit."""
    start = data.index(kind) - 4
    size = int.from_bytes(data[start : start + 4], "big")
    new = box(kind, content)
    changed = data[:start] + new + data[start + size :]
    for around in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = data.find(around) - 4
        if 0 <= place < start < place + int.from_bytes(data[place : place + 4], "big"):
            old = int.from_bytes(data[place : place + 4], "big")
            changed = changed[:place] + struct.pack(">I", old + len(new) - size) + changed[place + 4 :]
    return changed


def _iso_tables() -> Iterator[tuple[str, bytes]]:
    """Tables of MP4 that need few bytes for many samples."""
    plain = encode_video(numbered_frames(4))
    for count in (HUGE, MANY):
        sizes, times = struct.pack(">3I", 0, 1, count), struct.pack(">4I", 0, 1, count, 512)
        yield f"{count:,} frames of one size (stsz)", _changed(b"stsz", sizes, plain)
        yield f"{count:,} times (stts)", _changed(b"stts", times, plain)
        both = _changed(b"stts", times, _changed(b"stsz", sizes, plain))
        yield f"{count:,} frames of one size, and their times", both
        chunks = struct.pack(">5I", 0, 1, 1, count, 1)
        yield f"{count:,} frames, in one chunk", _changed(b"stsc", chunks, both)
        sound = both.replace(b"vide", b"soun")
        yield f"{count:,} frames that claim to be sound", sound
        yield f"{count:,} frames of no bytes", _changed(b"stsz", struct.pack(">3I", 0, 0, count), plain)
        yield f"{count:,} frames in a compressed index", _compressed(_changed(b"stsc", chunks, both))
        for kind, entry in ((b"ctts", struct.pack(">2I", count, 0)), (b"elst", struct.pack(">3I", 1, 0, 65536))):
            yield f"{count:,} entries ({kind.decode()})", _with_box(kind, struct.pack(">2I", 0, count) + entry, plain)
        fragments = encode_video(numbered_frames(24), muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
        run = struct.pack(">2I", 0, count)  # no fields for each sample
        yield f"{count:,} frames in a fragment (trun)", _changed_run(fragments, run, 1)
        yield (
            f"{count // 100:,} frames in each of 100 fragments",
            _changed_run(fragments, struct.pack(">2I", 0, count // 100), 100),
        )


def _with_box(kind: bytes, content: bytes, data: bytes) -> bytes:
    """The content in the box of this kind, or in a new one in place of the table of key frames."""
    if kind in data:
        return _changed(kind, content, data)
    return _changed(b"stss", content, data).replace(b"stss", kind)


def _changed_run(data: bytes, run: bytes, times: int) -> bytes:
    """The first fragment's table of samples, and then `times` copies of the fragment."""
    start = data.index(b"moof") - 4
    head = data[start + 8 : data.index(b"trun") - 4]  # mfhd, traf's head, tfhd, tfdt
    traf = head.index(b"traf") - 4
    fragment = box(b"moof", head[:traf] + box(b"traf", head[traf + 8 :] + box(b"trun", run)))
    return data[:start] + times * fragment + box(b"mdat", bytes(64))


def _compressed(data: bytes) -> bytes:
    """An MP4 whose index is deflated (QuickTime's `cmov`)."""
    start = data.index(b"moov") - 4
    moov = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    packed = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", len(moov)) + zlib.compress(moov))
    return data[:start] + box(b"moov", box(b"cmov", packed)) + data[start + len(moov) :]


def _durations() -> Iterator[tuple[str, bytes]]:
    """A kilobyte or two that claims many hours."""
    plain = encode_video(numbered_frames(4))
    start = plain.index(b"mdhd") + 16
    seconds = plain[:start] + struct.pack(">I", 1) + plain[start + 4 :]  # the unit of time
    yield "4 frames in 1,111 hours (stts)", _changed(b"stts", struct.pack(">4I", 0, 1, 4, 10**6), seconds)
    start = plain.index(b"mdhd") + 20
    yield "2^32 units of time (mdhd)", plain[:start] + b"\xff" * 4 + plain[start + 4 :]
    yield "16,384 frames a second for a day", encode_video(numbered_frames(4), fps=16384, pts=[0, 1, 2, 16384 * 86400])
    for container in ("matroska", "avi", "flv"):
        hours = 1 if container == "avi" else 200  # AVI holds an empty chunk for each frame that isn't there
        yield (
            f"{hours} hours, {container}",
            encode_video(numbered_frames(4), container=container, pts=[0, 1, 2, FPS * 3600 * hours]),
        )
    matroska = encode_video(numbered_frames(4), container="matroska")
    start = matroska.index(b"\x44\x89\x88") + 3
    yield "10^300 ms, matroska", matroska[:start] + struct.pack(">d", 1e300) + matroska[start + 8 :]


def _depths() -> Iterator[tuple[str, bytes]]:
    """Boxes in boxes, and boxes of no bytes."""
    plain, deep = encode_video(numbered_frames(4)), b""
    for _ in range(5000):
        deep = box(b"moov", deep)
    head = box(b"ftyp", b"isom\0\0\2\0isomiso2")
    yield "5,000 boxes in each other", head + deep + plain
    yield "5,000 boxes in each other, behind", plain + deep
    yield (
        "boxes up to the end in each other",
        head + struct.pack(">I", 0) + b"moov" + 5000 * (struct.pack(">I", 0) + b"trak"),
    )
    yield "100,000 empty boxes", head + 100_000 * box(b"free") + plain
    yield "20,000 empty tracks", head + box(b"moov", 20_000 * box(b"trak"))
    yield "20,000 tracks", head + box(b"moov", 20_000 * box(b"trak", box(b"mdia", box(b"minf", box(b"stbl")))))
    matroska = encode_video(numbered_frames(4), container="matroska")
    tags = b""
    for _ in range(2000):
        tags = b"\x67\xc8" + (1 << 28 | len(tags)).to_bytes(4, "big") + tags
    tags = b"\x73\x73" + (1 << 28 | len(tags)).to_bytes(4, "big") + tags
    yield (
        "2,000 tags in each other, matroska",
        matroska + b"\x12\x54\xc3\x67" + (1 << 28 | len(tags)).to_bytes(4, "big") + tags,
    )
    avi, lists = encode_video(numbered_frames(4), container="avi"), b""
    for _ in range(2000):
        lists = b"LIST" + struct.pack("<I", 4 + len(lists)) + b"movi" + lists
    yield "2,000 lists in each other, avi", avi[:12] + lists + avi[12:]


def _lengths() -> Iterator[tuple[str, bytes]]:
    """Sizes far beyond the end of the file."""
    avi = encode_video(numbered_frames(4), container="avi")
    for kind in (b"strh", b"strf", b"movi", b"00dc", b"idx1", b"hdrl"):
        place = avi.index(kind) + (4 if kind not in (b"movi", b"hdrl") else -4)
        yield f"2 GB of {kind.decode()}, avi", avi[:place] + struct.pack("<I", 2**31 - 1) + avi[place + 4 :]
    place = avi.index(b"avih") + 8
    yield "2^32 - 1 in all of avih, avi", avi[:place] + b"\xff" * 56 + avi[place + 56 :]
    place = avi.index(b"strh") + 8 + 20
    yield "2^32 - 1 in all of strh, avi", avi[:place] + b"\xff" * 24 + avi[place + 24 :]
    matroska = encode_video(numbered_frames(4), container="matroska")
    for name, mark in (("CodecPrivate", b"\x63\xa2"), ("SimpleBlock", b"\xa3"), ("Cues", b"\x1c\x53\xbb\x6b"),
                       ("Tracks", b"\x16\x54\xae\x6b"), ("Cluster", b"\x1f\x43\xb6\x75")):  # fmt: skip
        place = matroska.rindex(mark) if name == "Cues" else matroska.index(mark)
        size_at = place + len(mark)
        for size in (2**31 - 1, 2**55):
            field = (1 << 56 | size).to_bytes(8, "big")
            width = 9 - matroska[size_at].bit_length()
            yield f"{size:.0e} bytes of {name}, matroska", matroska[:size_at] + field + matroska[size_at + width :]
    plain = encode_video(numbered_frames(4))
    for kind in (b"avcC", b"stsd", b"mdat", b"stco", b"ftyp", b"udta"):
        place = plain.index(kind) - 4
        yield f"2 GB of {kind.decode()}, mp4", plain[:place] + struct.pack(">I", 2**31 - 1) + plain[place + 4 :]
    wide = struct.pack(">I", 1) + b"wide" + struct.pack(">Q", 2**63 - 1)
    yield "2^63 bytes in front, mp4", box(b"ftyp", b"isom\0\0\2\0") + wide + plain
    flv = encode_video(numbered_frames(4), container="flv", codec="flv")
    yield "16 MB of a tag, flv", flv[:14] + b"\xff\xff\xff" + flv[17:]
    asf = encode_video(numbered_frames(4), container="asf", codec="wmv2")
    place = asf.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # the file's properties
    yield "4 GB of a packet, asf", asf[: place + 92] + b"\xff" * 8 + asf[place + 100 :]
