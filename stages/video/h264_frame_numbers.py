"""Whether a stream of H.264 has lost pictures that others refer to, by the numbers in its slice headers.

Where one is lost, each decoder conceals it in its own way, without a word: FFmpeg's versions differ. Source: ITU-T H.264
sections 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header) and 7.4.3 (frame_num).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stages.video.picture_types import H264_IDR, H264_SLICES, H264_SPS, nal_starts

HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
HEADER = 24  # bytes of a slice that hold its number, at most


@dataclass(frozen=True)
class _Numbers:
    """How a sequence parameter set lays out `frame_num`: its bits, and the bits of the colour plane before it."""

    bits: int
    plane_bits: int


def first_gap(packets: Iterable[Sequence[int]], extradata: bytes) -> int | None:
    """The first packet whose picture follows none that it may follow; None if no reference picture is missing.

    `packets`: of H.264, in coded order, with one sequence parameter set for all. Streams that jump on purpose count as well.
    """
    finder = GapFinder(extradata)
    return next((position for position, packet in enumerate(packets) if finder.is_gap(packet)), None)


class GapFinder:
    """Tells of one packet after the other, in coded order, whether a picture is missing before it, as in `first_gap`."""

    def __init__(self, extradata: bytes):
        self.extradata, self.numbers, self.previous = extradata, None, None
        for data in _parameter_sets(extradata):
            self.numbers = _read_numbers(data)

    def is_gap(self, packet: Sequence[int]) -> bool:
        for start in nal_starts("h264", packet, self.extradata):
            head = packet[start]
            if head & 31 == H264_SPS:
                self.numbers = _read_numbers(bytes(packet[start : start + 200]))
            if head & 31 not in H264_SLICES:
                continue
            if self.numbers is None:
                return True
            number = _frame_number(bytes(packet[start + 1 : start + HEADER]), self.numbers)
            if head & 31 == H264_IDR:
                self.previous = 0
            if self.previous is None or number not in (self.previous, (self.previous + 1) % (1 << self.numbers.bits)):
                return True
            if head >> 5:  # later pictures may refer to it
                self.previous = number
            return False
        return False


def _parameter_sets(extradata: bytes) -> Iterator[bytes]:
    starts = [8] if extradata[:1] == b"\1" else nal_starts("h264", extradata, extradata)
    return (extradata[start:] for start in starts if len(extradata) > start and extradata[start] & 31 == H264_SPS)


def _frame_number(header: bytes, numbers: _Numbers) -> int:
    bits = _Bits(header)
    for _ in ("first_mb_in_slice", "slice_type", "pic_parameter_set_id"):
        bits.exponential()
    bits.take(numbers.plane_bits)
    return bits.take(numbers.bits)


def _read_numbers(parameter_set: bytes) -> _Numbers:
    profile, bits, plane_bits = parameter_set[1] if len(parameter_set) > 1 else 0, _Bits(parameter_set[4:]), 0
    bits.exponential()  # seq_parameter_set_id
    if profile in HIGH_PROFILES:
        chroma = bits.exponential()
        plane_bits = 2 * bits.take(1) if chroma == 3 else 0
        bits.exponential(), bits.exponential()  # bit depths
        bits.take(1)  # lossless
        if bits.take(1):
            for i in range(8 if chroma != 3 else 12):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    return _Numbers(min(bits.exponential() + 4, 16), plane_bits)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = 8
    for _ in range(size):
        code = bits.exponential()
        last = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
        if last == 0:
            return


class _Bits:
    """A reader of bits; beyond the end there are ones. Bytes that only prevent a start code are left out."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0") + b"\xff" * 8
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self.left = max(0, self.left - count)
        return self.value >> self.left & ((1 << count) - 1)

    def exponential(self) -> int:
        """An unsigned Exp-Golomb code."""
        rest = self.value & ((1 << self.left) - 1)
        zeros = min(self.left - rest.bit_length(), 32)
        return self.take(2 * zeros + 1) - 1
