"""Real encoded clips for tests, made on the spot with PyAV (installed everywhere, unlike decord)."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


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
) -> bytes:
    """Encodes uint8 [N, H, W, 3] RGB (H and W even) as a whole file: mp4, mov, mkv (matroska), webm, avi.

    `rotation`, mp4 and mov only: the multiple of 90 degrees clockwise by which a player turns the stored frames.
    `pts`: increasing times in units of 1/fps for a variable frame rate; 0, 1, 2, … otherwise.
    `options`: of the encoder; nearly lossless for libx264 by default, so that colours can be told apart.
    """
    if options is None:
        options = {"crf": "6", "preset": "ultrafast", "bf": str(b_frames)} if codec == "libx264" else {}
    file = io.BytesIO()
    with av.open(file, "w", format={"mkv": "matroska"}.get(container, container)) as output:
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = i if pts is None else pts[i], Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return _turn(file.getvalue(), rotation) if rotation else file.getvalue()


def _turn(data: bytes, rotation: int) -> bytes:
    """Overwrites the 3x3 display matrix of the first track header (ISO 14496-12, `tkhd` version 0)."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + matrix + data[start + len(matrix) :]


def encode_audio(seconds: float = 1.0, container: str = "mp4", codec: str = "aac") -> bytes:
    """A file with a tone and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=16000, layout="mono")
        for start in range(0, int(seconds * 16000), 1024):
            tone = 0.2 * np.sin(np.arange(start, start + 1024, dtype=np.float32) / 10)[None]
            frame = av.AudioFrame.from_ndarray(tone.astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def moving_square(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, h, w, 3]: a bright square crossing a smooth coloured gradient; the seed picks colours and path."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    phase = rng.uniform(0, 6, 3)
    background = 100 + 60 * np.sin(x[..., None] / w * 3 + phase) * np.cos(y[..., None] / h * 2 + phase)
    frames = np.repeat(background[None], n, axis=0)
    colour, side = rng.uniform(150, 255, 3), max(2, min(h, w) // 4)
    start, end = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)
    for i in range(n):
        top, left = ((start + (end - start) * i / max(1, n - 1)) * (h - side, w - side)).astype(int)
        frames[i, top : top + side, left : left + side] = colour
    return frames.round().clip(0, 255).astype(np.uint8)


def numbered_frames(n: int, h: int = 64, w: int = 96) -> np.ndarray:
    """uint8 [n, h, w, 3], n ≤ 256: each frame shows its own number in binary, eight black or white vertical bars."""
    bits = (np.arange(n)[:, None] >> np.arange(7, -1, -1)) & 1
    bars = bits[:, np.arange(w) * 8 // w].astype(np.uint8) * 255
    return np.broadcast_to(bars[:, None, :, None], (n, h, w, 3)).copy()


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames [T, H, W, 3] of `numbered_frames` show, lossy coding notwithstanding."""
    h, w = frames.shape[1:3]
    middles = (np.arange(8) * w + w // 2) // 8
    bits = frames[:, h // 4 : 3 * h // 4, middles].mean(axis=(1, 3)) > 127
    return (bits << np.arange(7, -1, -1)).sum(axis=1).tolist()
