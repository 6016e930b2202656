"""What the tables of an ISO file (MP4, MOV) claim: FFmpeg and decord make room for it before they read a frame."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from stages.video.errors import DecodeError

MAX_FRAMES = 2**22  # of a video: 19 hours at 60 frames per second
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # an ISO file begins with one of them
_BOXES_OF_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"cmov")
_MAX_INDEX = 2**26  # bytes of a compressed index, unpacked


def check_claims(data: bytes) -> None:
    """Raises DecodeError if the file claims more than MAX_FRAMES frames, or more samples than it has bytes.

    A table with one size, one duration or no fields needs some bytes for any number of samples. Sound may have more samples
    than MAX_FRAMES, one for each value.
    """
    if data[4:8] in FIRST_BOXES:
        _check(data, len(data))


def _check(data: bytes, file_size: int) -> None:
    parts, in_fragments = [(0, len(data), False)], 0
    while parts:
        position, end, is_sound = parts.pop()
        for kind, start, stop in _boxes(data, position, end):
            if kind in _BOXES_OF_BOXES:
                handler = data.find(b"hdlr", start, stop) + 12 if kind == b"trak" else 0
                parts.append((start, stop, is_sound or data[handler : handler + 4] == b"soun"))
            elif kind == b"cmvd":  # QuickTime's compressed index
                _check(_unpacked(data[start + 4 : stop]), file_size)
            count = _samples(data, kind, start, stop)
            in_fragments += count if kind == b"trun" else 0
            limit = file_size if is_sound else min(MAX_FRAMES, file_size)
            if max(count, in_fragments) > limit:
                raise DecodeError(
                    f"it claims {max(count, in_fragments)} frames in {file_size} bytes; at most {limit} are read"
                )


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box between two places."""
    while position + 8 <= end:
        size, kind, head = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        stop = min(position + size, end) if size else end
        if stop < position + head:
            return
        yield kind, position + head, stop
        position = stop


def _samples(data: bytes, kind: bytes, start: int, stop: int) -> int:
    """How many samples a table has; 0 for other boxes."""
    if kind in (b"stts", b"ctts"):  # runs: count, value
        return int(np.frombuffer(data[start + 8 : stop - (stop - start) % 8], ">u4")[::2].sum(dtype=np.int64))
    field = {b"stsz": 8, b"stz2": 8, b"trun": 4}.get(kind)
    return 0 if field is None else int.from_bytes(data[start + field : min(start + field + 4, stop)], "big")


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_INDEX)
    except zlib.error:
        return b""
