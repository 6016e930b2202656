"""The demo's data set: a handwritten digit moves over clutter. The class is the digit and the direction of its motion.

The digits are scikit-learn's `load_digits`: 1,797 real 8×8 pictures from the test set of UCI's "Optical Recognition of
Handwritten Digits". The splits have different pictures, so validation and test show handwriting that no training clip
has. Opposite directions show the same frames in opposite order. Only the order distinguishes them.
"""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
from sklearn.datasets import load_digits

DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}  # y, x per unit of time
CLASSES = tuple(f"{digit}-{direction}" for digit in range(10) for direction in DIRECTIONS)
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}  # of the pictures of each digit
FRAGMENTS = 5  # pieces of other digits in the background of a clip
FPS = 8


def generator(*key: object) -> np.random.Generator:
    """A counter-based random generator. Its numbers depend on `key` only."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@lru_cache
def handwriting(split: str) -> tuple[np.ndarray, ...]:
    """The pictures of one split: for each digit an array [n, 8, 8] of ink from 0 to 1. No picture is in two splits."""
    pictures, labels = load_digits(return_X_y=True)
    names = list(SHARES)
    edges = np.cumsum([0.0, *SHARES.values()])
    low, high = edges[names.index(split)], edges[names.index(split) + 1]
    chosen = []
    for digit in range(10):
        rows = generator("handwriting", digit).permutation(np.flatnonzero(labels == digit))
        rows = rows[round(low * len(rows)) : round(high * len(rows))]
        chosen.append((pictures[rows] / 16).reshape(-1, 8, 8))
    return tuple(chosen)


def _stretch(picture: np.ndarray, centers: np.ndarray, cell: float, size: int) -> np.ndarray:
    """Ink [h, w] → [N, size, size]: enlarged linearly, one cell to `cell` pixels, around each of `centers` [N, 2] (y, x).

    float64: machines round the last bit of a matrix product differently, and this must not change a grey level.
    """
    pixels = np.arange(size) + 0.5

    def weights(center: np.ndarray, cells: int) -> np.ndarray:
        position = (pixels[None, :, None] - center[:, None, None]) / cell + cells / 2
        return np.maximum(0, 1 - np.abs(position - np.arange(cells) - 0.5))

    return weights(centers[:, 0], picture.shape[0]) @ picture @ weights(centers[:, 1], picture.shape[1]).swapaxes(1, 2)


def draw_clip(*, split: str, label: int, seed: int, index: int, size: int = 40, frames: int = 8) -> np.ndarray:
    """One clip uint8 [frames, size, size, 3]. It depends on the arguments only. `label` is an index into CLASSES.

    `seed` and `index` choose handwriting, clutter, colours, position and speed. Only the handwriting depends on the digit
    too. Nothing of it depends on the direction. The position is that of the digit in the middle of the clip.
    """
    rng = generator("clip", seed, split, index)
    digits = handwriting(split)
    digit, direction = divmod(label, len(DIRECTIONS))
    picture = digits[digit][int(rng.random() * len(digits[digit]))]
    cell, speed = size * rng.uniform(0.05, 0.06), size * rng.uniform(0.03, 0.04)
    middle = size * rng.uniform(0.35, 0.65, 2)
    times = np.arange(frames) - (frames - 1) / 2
    centers = middle + speed * times[:, None] * np.array(list(DIRECTIONS.values())[direction])

    slope, tint = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.1, 0.3, 3)
    ramp = (np.arange(size) + 0.5) / size - 0.5
    scene = np.clip(tint + (slope[0] * ramp[:, None] + slope[1] * ramp)[..., None], 0, 1)
    for _ in range(FRAGMENTS):
        other = digits[int(rng.integers(10))]
        top, left = rng.integers(0, 5, 2)
        piece = other[int(rng.integers(len(other)))][top : top + 4, left : left + 4]
        ink = _stretch(piece, size * rng.uniform(0, 1, (1, 2)), cell, size)[0, ..., None]
        scene += ink * (rng.uniform(0.3, 0.8, 3) - scene)
    ink = _stretch(picture, centers, cell, size)[..., None]
    clip = scene + ink * (rng.uniform(0.6, 1.0, 3) - scene)
    return np.round(clip * 255).astype(np.uint8)


def encode_clip(clip: np.ndarray, crf: int = 18) -> bytes:
    """uint8 [N, H, W, 3] → an H.264 mp4 (yuv420p, even H and W). Equal pictures give equal bytes with one libx264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # zerolatency has no lookahead. With lookahead, encoders in several threads sometimes wrote other bytes (cause unknown).
        options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def make_digits(
    folder: Path,
    *,
    clips: dict[str, int],
    seed: int = 0,
    size: int = 40,
    frames: int = 8,
    workers: int = 2,
    labels: Literal["digit-direction", "digit", "direction"] = "digit-direction",
) -> None:
    """Write `folder/<split>/<digit>-<direction>/<index>.mp4`. The class changes with each index, in turn.

    With other `labels` the same clips are in folders `<digit>` (ten classes) or `<direction>` (four classes).
    Files are written atomically, and existing files are kept, so a call goes on after a kill. The content of a file
    depends neither on `workers` nor on the number of clips.
    """

    parts = {"digit": slice(0, 1), "direction": slice(1, 2)}.get(labels, slice(2))
    names = ["-".join(name.split("-")[parts]) for name in CLASSES]

    def write(task: tuple[str, int]) -> None:
        split, index = task
        label = index % len(CLASSES)
        path = folder / split / names[label] / f"{index:06d}.mp4"
        if path.exists():
            return
        clip = draw_clip(split=split, label=label, seed=seed, index=index, size=size, frames=frames)
        part = path.with_suffix(".part")
        part.write_bytes(encode_clip(clip))
        os.replace(part, path)

    for split in clips:
        handwriting(split)
        for name in names:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(write, [(split, index) for split, count in clips.items() for index in range(count)]):
            pass
