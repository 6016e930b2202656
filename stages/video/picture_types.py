"""What the first bytes of a packet say: can decoding start at it, and do its frames have another size?

A container may mark any packet as a key frame. Only the picture's own type says whether a decoder can start there.
Sources: ITU-T H.264 section 7.3.1 and table 7-1; H.265 table 7-1; ISO/IEC 14496-2 section 6.2.5; RFC 6386 section 9.1
(VP8); the VP9 bitstream specification, section 6.2; the AV1 specification, section 5.9.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.video import mjpeg_headers

H264_SLICES, H264_IDR, H264_SPS, H264_PPS = range(1, 6), 5, 7, 8
HEVC_SLICES, HEVC_RANDOM_ACCESS, HEVC_SETS = range(32), range(16, 22), (32, 33, 34)
SMALLEST_VOP = 16  # bytes: a smaller one may be a picture that isn't coded, which gives no frame
MPEG4_VOP, MPEG4_LAYERS = 0xB6, range(0x20, 0x30)
AV1_SEQUENCE, AV1_FRAME_HEADER, AV1_FRAME = 1, 3, 6
SIZED = frozenset(("h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "mjpeg"))  # the codecs whose packets this file reads


def is_start(codec: str, packet: bytes, extradata: bytes) -> bool:
    """Whether a decoder that starts at this packet shows its picture, and all later ones, as they are.

    True for an IDR picture (H.264), a random access picture (HEVC), an I-VOP (MPEG-4 part 2), a shown key frame (VP8, VP9,
    AV1), and a JPEG picture with all its tables. A recovery point is none: its pictures become right only after some time.
    `extradata`: the container's copy of the parameter sets. Raises KeyError for a codec that is not in SIZED.
    """
    return _IS_START[codec](packet, extradata)


def frame_layout(codec: str, packet: bytes, extradata: bytes) -> frozenset[bytes]:
    """What a packet says about the size of frames: parameter sets (H.264, HEVC, MPEG-4, AV1), or the size (VP8, VP9, MJPEG).

    Two equal ones mean equal sizes. Empty if the packet says nothing.
    """
    return _LAYOUT[codec](packet, extradata)


def extradata_layout(codec: str, extradata: bytes) -> frozenset[bytes]:
    """As `frame_layout`, of the container's copy of the parameter sets."""
    if codec in ("h264", "hevc") and extradata[:1] == b"\1":
        units = _avc_sets(extradata) if codec == "h264" else _hevc_sets(extradata)
        return frozenset(unit.rstrip(b"\0") for unit in units if _type(codec, unit) in _SETS[codec])
    if codec in ("h264", "hevc", "mpeg4"):
        return frame_layout(codec, extradata, b"")
    return frozenset()


def shows_one_picture(codec: str, packet: Sequence[int], extradata: bytes) -> bool:
    """Whether a packet gives one frame, as far as its first bytes say. `packet`: bytes or a memoryview.

    Other packets are only passed over by decoders: fillers, MPEG-4's pictures that aren't coded or that share a packet
    (packed bitstream), VP9's hidden frames.
    """
    if codec in ("h264", "hevc"):
        slices = H264_SLICES if codec == "h264" else HEVC_SLICES
        return any(_type(codec, packet[start : start + 1]) in slices for start in nal_starts(codec, packet, extradata))
    if codec == "mpeg4":
        content = bytes(packet)
        return content.count(b"\0\0\1\xb6") == 1 and len(content) - content.find(b"\0\0\1\xb6") > SMALLEST_VOP
    return _vp9_shows_last(bytes(packet)) if codec == "vp9" else True


def _nal_units(codec: str, packet: bytes, extradata: bytes) -> Iterator[bytes]:
    """The NAL units of a packet up to its first slice: after start codes, or after lengths where the extradata says so."""
    slices = H264_SLICES if codec == "h264" else HEVC_SLICES
    for unit in _all_nal_units(codec, packet, extradata):
        yield unit
        if _type(codec, unit) in slices:
            return


def _all_nal_units(codec: str, packet: bytes, extradata: bytes) -> Iterator[bytes]:
    if extradata[:1] != b"\1" or len(extradata) < 7:  # Annex B
        for unit in packet.split(b"\0\0\1")[1:]:
            yield unit.rstrip(b"\0")
        return
    width = extradata[4 if codec == "h264" else 21 if len(extradata) > 21 else 0] % 4 + 1
    position = 0
    while position + width < len(packet):
        size = int.from_bytes(packet[position : position + width], "big")
        position += width
        yield packet[position : position + size]
        position += size


def nal_starts(codec: str, packet: Sequence[int], extradata: bytes) -> Iterator[int]:
    """Where the NAL units of a packet begin. `packet`: bytes, or a memoryview, of which little is read if it has lengths."""
    if extradata[:1] != b"\1" or len(extradata) < 7:  # Annex B
        content, start = bytes(packet), -1
        while (start := content.find(b"\0\0\1", start + 1)) >= 0 and start + 3 < len(content):
            yield start + 3
        return
    width = extradata[4 if codec == "h264" else 21 if len(extradata) > 21 else 0] % 4 + 1
    position = 0
    while position + width < len(packet):
        yield position + width
        position += width + int.from_bytes(packet[position : position + width], "big")


def _avc_sets(extradata: bytes) -> Iterator[bytes]:
    position = 6
    for _ in range(extradata[5] & 31 if len(extradata) > 5 else 0):
        size = int.from_bytes(extradata[position : position + 2], "big")
        yield extradata[position + 2 : position + 2 + size]
        position += 2 + size


def _hevc_sets(extradata: bytes) -> Iterator[bytes]:
    position = 23
    for _ in range(extradata[22] if len(extradata) > 22 else 0):
        count = int.from_bytes(extradata[position + 1 : position + 3], "big")
        position += 3
        for _ in range(count):
            size = int.from_bytes(extradata[position : position + 2], "big")
            yield extradata[position + 2 : position + 2 + size]
            position += 2 + size


def _type(codec: str, unit: bytes) -> int:
    if not unit:
        return -1
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def _h264_start(packet: bytes, extradata: bytes) -> bool:
    types = (_type("h264", unit) for unit in _nal_units("h264", packet, extradata))
    return next((kind for kind in types if kind in H264_SLICES), None) == H264_IDR


def _hevc_start(packet: bytes, extradata: bytes) -> bool:
    types = (_type("hevc", unit) for unit in _nal_units("hevc", packet, extradata))
    return next((kind for kind in types if kind in HEVC_SLICES), -1) in HEVC_RANDOM_ACCESS


def _parameter_sets(codec: str, packet: bytes, extradata: bytes) -> frozenset[bytes]:
    units = _nal_units(codec, packet, extradata)
    return frozenset(unit.rstrip(b"\0") for unit in units if _type(codec, unit) in _SETS[codec])


def _mpeg4_start(packet: bytes, _: bytes) -> bool:
    position = packet.find(b"\0\0\1\xb6")
    return position >= 0 and len(packet) > position + 4 and packet[position + 4] >> 6 == 0


def _mpeg4_layers(packet: bytes, _: bytes) -> frozenset[bytes]:
    """The headers of the video object layers; they hold the size."""
    units = packet[: packet.find(b"\0\0\1\xb6") + 4 or None].split(b"\0\0\1")[1:]
    return frozenset(unit.rstrip(b"\0") for unit in units if unit and unit[0] in MPEG4_LAYERS)


def _vp8_start(packet: bytes, _: bytes) -> bool:
    return len(packet) >= 10 and packet[0] & 1 == 0 and packet[3:6] == b"\x9d\x01\x2a"


def _vp8_size(packet: bytes, _: bytes) -> frozenset[bytes]:
    return frozenset((packet[6:10],)) if _vp8_start(packet, b"") else frozenset()


def _vp9_start(packet: bytes, _: bytes) -> bool:
    if len(packet) < 10 or packet[0] >> 6 != 2:
        return False
    profile = packet[0] >> 5 & 1 | (packet[0] >> 4 & 1) << 1
    flags = (packet[0] << 8 | packet[1]) >> (9 if profile < 3 else 8) & 0b111
    return flags == 0b001  # not an existing frame, a key frame, shown


def _vp9_shows_last(packet: bytes) -> bool:
    """Whether the last frame of a packet is shown. A superframe's sizes stand at its end (annex B of the specification)."""
    if packet and packet[-1] & 0xE0 == 0xC0:
        width, count = (packet[-1] >> 3 & 3) + 1, (packet[-1] & 7) + 1
        sizes = packet[-1 - width * count : -1]
        starts = sum(int.from_bytes(sizes[i * width : (i + 1) * width], "little") for i in range(count - 1))
        packet = packet[starts:]
    if len(packet) < 2 or packet[0] >> 6 != 2:
        return False
    profile = packet[0] >> 5 & 1 | (packet[0] >> 4 & 1) << 1
    flags = (packet[0] << 8 | packet[1]) >> (9 if profile < 3 else 8) & 0b111
    return bool(flags >> 2 or flags & 1)  # an existing frame, or a new one that is shown


def _vp9_size(packet: bytes, _: bytes) -> frozenset[bytes]:
    """A key frame's header up to its size. Profile 0 has 68 bits there; the others have a few more."""
    if not _vp9_start(packet, b""):
        return frozenset()
    return frozenset((packet[:8] + bytes((packet[8] & 0xF0,)) if packet[0] >> 4 & 3 == 0 else packet[:10],))


def _av1_units(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and content of each open bitstream unit."""
    position = 0
    while position < len(packet):
        header = packet[position]
        kind, extension, sized = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
        position += 1 + extension
        size, shift = 0, 0
        while sized and position < len(packet):
            byte = packet[position]
            size, shift, position = size | (byte & 127) << shift, shift + 7, position + 1
            if byte < 128 or shift > 56:
                break
        size = size if sized else len(packet) - position
        yield kind, packet[position : position + size]
        position += size


def _av1_start(packet: bytes, _: bytes) -> bool:
    content = next((unit for kind, unit in _av1_units(packet) if kind in (AV1_FRAME_HEADER, AV1_FRAME)), b"")
    return len(content) > 0 and content[0] >> 4 == 0b0001  # not an existing frame, key frame, shown


def _av1_sequence(packet: bytes, _: bytes) -> frozenset[bytes]:
    return frozenset(unit for kind, unit in _av1_units(packet) if kind == AV1_SEQUENCE)


_SETS = {"h264": (H264_SPS, H264_PPS), "hevc": HEVC_SETS}
_IS_START = {"h264": _h264_start, "hevc": _hevc_start, "mpeg4": _mpeg4_start, "vp8": _vp8_start, "vp9": _vp9_start,
             "av1": _av1_start, "mjpeg": lambda packet, _: mjpeg_headers.is_complete(packet)}  # fmt: skip
_LAYOUT = {
    "h264": lambda packet, extradata: _parameter_sets("h264", packet, extradata),
    "hevc": lambda packet, extradata: _parameter_sets("hevc", packet, extradata),
    "mpeg4": _mpeg4_layers, "vp8": _vp8_size, "vp9": _vp9_size, "av1": _av1_sequence,
    "mjpeg": lambda packet, _: mjpeg_headers.picture_size(packet),
}  # fmt: skip
