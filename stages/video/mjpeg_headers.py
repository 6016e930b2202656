"""What the header of a JPEG picture of a video (MJPEG) says: its size, and whether it brings all tables that it needs.

A decoder takes a table that is missing from the pictures before. Source: ITU-T T.81, section B.2.
"""

from __future__ import annotations

from collections.abc import Iterator

QUANTISATION, HUFFMAN, SCAN = 0xDB, 0xC4, 0xDA
FRAMES = frozenset({*range(0xC0, 0xD0)} - {HUFFMAN, 0xC8, 0xCC})


def is_complete(packet: bytes) -> bool:
    """Whether the tables that the first scan needs stand before it. (Some cameras leave out the usual Huffman tables.)"""
    quantisation, huffman, needed = set(), set(), None
    for marker, content in _segments(packet):
        if marker == QUANTISATION:
            while content:
                quantisation.add(content[0] & 15)
                content = content[129 if content[0] >> 4 else 65 :]
        elif marker == HUFFMAN:
            while len(content) >= 17:
                huffman.add(content[0])
                content = content[17 + sum(content[1:17]) :]
        elif marker in FRAMES:
            needed = set(content[8::3])
        elif marker == SCAN:
            tables = content[2 : 1 + 2 * content[0] if content else 0 : 2]
            wanted = {number for both in tables for number in (both >> 4, 16 | both & 15)}
            return needed is not None and needed <= quantisation and wanted <= huffman
    return False


def picture_size(packet: bytes) -> frozenset[bytes]:
    """Height and width, as the header has them."""
    return frozenset(content[1:5] for marker, content in _segments(packet) if marker in FRAMES)


def _segments(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment up to the first scan."""
    position = 2
    while packet[:2] == b"\xff\xd8" and position + 4 <= len(packet) and packet[position] == 0xFF:
        marker, size = packet[position + 1], int.from_bytes(packet[position + 2 : position + 4], "big")
        yield marker, packet[position + 4 : position + 2 + size]
        if marker == SCAN:
            return
        position += 2 + size
