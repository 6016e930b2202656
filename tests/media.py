"""Real encoded clips for tests, made on the spot with PyAV (installed everywhere, unlike decord)."""

import io

import av
import numpy as np

from stages.bench.bad_videos.made_videos import encode_video, numbered_frames

__all__ = ["encode_audio", "encode_video", "moving_square", "numbered_frames", "read_numbers"]


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


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames [T, H, W, 3] of `numbered_frames` show, lossy coding notwithstanding."""
    h, w = frames.shape[1:3]
    middles = (np.arange(8) * w + w // 2) // 8
    bits = frames[:, h // 4 : 3 * h // 4, middles].mean(axis=(1, 3)) > 127
    return (bits << np.arange(7, -1, -1)).sum(axis=1).tolist()
