"""The elements of a container file: boxes (MP4, MOV), EBML elements (Matroska), chunks (AVI), packets (TS), tags (FLV)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BOX_START = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
BOXES_OF_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"mvex", b"moof", b"traf", b"udta")
# EBML, Segment, Tracks, TrackEntry, Video, Cues, CuePoint, CueTrackPositions, SeekHead, Seek, Info, Cluster, BlockGroup, Tags
EBML_MASTERS = (0x1A45DFA3, 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1C53BB6B, 0xBB, 0xB7, 0x114D9B74, 0x4DBB, 0x1549A966,
                0x1F43B675, 0xA0, 0x1254C367)  # fmt: skip
TS_PACKET = 188


@dataclass(frozen=True)
class Element:
    """Bytes `start` to `end`; the content begins at `content`. The size is written at `size_at`, in `width` bytes.

    The size counts the bytes from `counted_from` on. `width` 0: it is not written. `parent`: its place in the list."""

    start: int
    content: int
    end: int
    size_at: int
    width: int
    counted_from: int
    order: Literal["big", "little", "ebml"]
    parent: int | None


def elements_of(data: bytes) -> list[Element]:
    """All elements, parents before their children. A file of an unknown format has blocks of 64 bytes."""
    if data[4:8] in BOX_START:
        found = _tree(data, _box)
    elif data[:4] == b"\x1a\x45\xdf\xa3":
        found = _tree(data, _ebml)
    elif data[:4] == b"RIFF":
        found = _tree(data, _chunk)
    elif data[:1] == data[TS_PACKET : TS_PACKET + 1] == b"G":
        found = list(_transport_packets(data))
    elif data[:3] == b"FLV":
        found = list(_tags(data))
    else:
        found = [Element(i, i, min(i + 64, len(data)), i, 0, i, "big", None) for i in range(0, len(data), 64)]
    return found or [Element(0, 0, len(data), 0, 0, 0, "big", None)]


def _tree(data: bytes, read) -> list[Element]:
    """`read` gives (start, content, end, size_at, width, counted_from, order), and where children begin or None."""
    found: list[Element] = []
    open_parts: list[tuple[int, int, int | None]] = [(0, len(data), None)]
    while open_parts:
        position, end, parent = open_parts.pop()
        while position < end and (parsed := read(data, position, end)) is not None:
            fields, children = parsed
            found.append(Element(*fields, parent))
            if children is not None:
                open_parts.append((children, found[-1].end, len(found) - 1))
            position = found[-1].end
    return found


def _box(data: bytes, position: int, end: int):
    if position + 8 > end:
        return None
    size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
    if size < 8:  # 0: up to the end; 1: a size of 8 bytes, as no file of the bench has
        size = end - position
    fields = (position, position + 8, min(position + size, end), position, 4, position, "big")
    return fields, position + 8 if kind in BOXES_OF_BOXES else position + 16 if kind in (b"stsd", b"dref") else None


def _ebml(data: bytes, position: int, end: int):
    id_width = 9 - data[position].bit_length()
    size_at = position + id_width
    if id_width > 4 or size_at >= end or not data[size_at]:
        return None
    width = 9 - data[size_at].bit_length()
    content = size_at + width
    size = int.from_bytes(data[size_at:content], "big") & ((1 << 7 * width) - 1)
    stop = end if size == (1 << 7 * width) - 1 else min(content + size, end)  # all ones: of unknown size
    children = content if int.from_bytes(data[position:size_at], "big") in EBML_MASTERS else None
    return (position, min(content, stop), stop, size_at, width, content, "ebml"), children


def _chunk(data: bytes, position: int, end: int):
    if position + 8 > end:
        return None
    size = int.from_bytes(data[position + 4 : position + 8], "little")
    stop = min(position + 8 + size + size % 2, end)
    fields = (position, position + 8, stop, position + 4, 4, position + 8, "little")
    return fields, position + 12 if data[position : position + 4] in (b"RIFF", b"LIST") else None


def _transport_packets(data: bytes) -> Iterator[Element]:
    """The size is that of the adaptation field, if the packet has one."""
    for i in range(0, len(data) - TS_PACKET + 1, TS_PACKET):
        yield Element(i, i + 4, i + TS_PACKET, i + 4, data[i + 3] >> 5 & 1, i + 5, "big", None)


def _tags(data: bytes) -> Iterator[Element]:
    position = 13
    while position + 11 <= len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        end = min(position + 11 + size + 4, len(data))
        yield Element(position, position + 11, end, position + 1, 3, position + 15, "big", None)
        position = end
