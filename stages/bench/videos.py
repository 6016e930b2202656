"""The input of the benches: synthetic ten-second H.264 clips that are as hard for a codec as natural ones.

A scene has discs of many sizes that cover each other, as leaves do, under a 1/f texture. A camera pans and zooms over it,
discs of other textures cross it, and every frame has sensor noise. The number of a clip determines its content. libx264
has preset medium, CRF 23, one thread, and no key frames at scene cuts. 340x256 clips have 500 kB (GOP 12) and 260 kB (GOP
250).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from stages.demo.digits import generator

FPS = 30
WORLD = 1.6  # width and height of the scene, in units of the frame's
OBJECTS = 4
NOISE = 1.5  # standard deviation of the sensor noise, in grey levels of 255
ENCODER = {"preset": "medium", "crf": "23", "sc_threshold": "0", "threads": "1"}


@dataclass(frozen=True)
class Kind:
    """The size of a clip in px, and `gop`: the number of frames from one key frame to the next."""

    width: int
    height: int
    gop: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, GOP {self.gop}"


SMALL = (Kind(340, 256, 12), Kind(340, 256, 250))
LARGE = (Kind(1280, 720, 12), Kind(1280, 720, 250))


def make_videos(folder: Path, kind: Kind, clips: int, seconds: float = 10.0, seed: int = 0) -> Path:
    """Make `clips` clips of a kind, in two class folders in turn. Existing files are kept.

    Returns the folder, `folder/WIDTHxHEIGHT-gopN-SECONDSs-SEED`. A clip's content depends on its number and on `seed`.
    """
    root = folder / f"{kind.width}x{kind.height}-gop{kind.gop}-{seconds:g}s-{seed}"
    for number in range(clips):
        path = root / "ab"[number % 2] / f"{number:04d}.mp4"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        _encode(part, draw_scene(seed, number, kind.width, kind.height, round(seconds * FPS)), kind)
        os.replace(part, path)
    return root


def link_videos(videos: Path, output: Path, clips: int) -> Path:
    """Fill `output` with `clips` symbolic links to the videos of a folder, several to each video if needed."""
    files = sorted(videos.rglob("*.mp4"), key=lambda path: path.name)
    for number in range(clips):
        path = files[number % len(files)]
        target = output / path.parent.name / f"{number:06d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.absolute())
    return output


def draw_scene(seed: int, number: int, width: int, height: int, frames: int) -> Iterator[np.ndarray]:
    """Yield the frames, uint8 [height, width, 3]."""
    rng = generator("scene", seed, number)
    world = _world(rng, round(WORLD * width), round(WORLD * height))
    objects = [_Disc.random(rng, width, height) for _ in range(OBJECTS)]
    start, end = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)  # of the camera, in units of its free space
    zoom = rng.uniform(0.7, 1.0, 2)
    noise = np.rint(rng.normal(0, NOISE, (height + 64, width + 64, 3))).astype(np.int16)
    for i in range(frames):
        progress = (1 - np.cos(np.pi * i / max(1, frames - 1))) / 2
        scale = WORLD * (zoom[0] + (zoom[1] - zoom[0]) * progress) / 1.2
        w, h = width * scale, height * scale
        left, top = (start + (end - start) * progress) * (world.width - w, world.height - h)
        picture = world.resize((width, height), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
        for disc in objects:
            picture.paste(disc.picture, disc.position(i / FPS), disc.mask)
        y, x = rng.integers(0, 64, 2)
        yield (np.asarray(picture) + noise[y : y + height, x : x + width]).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Disc:
    """A textured disc that moves around a centre."""

    picture: Image.Image
    mask: Image.Image
    centre: np.ndarray  # x, y in pixels
    radius: np.ndarray  # of the path, in x and in y
    speed: np.ndarray  # rounds a second, in x and in y
    phase: np.ndarray

    @staticmethod
    def random(rng: np.random.Generator, width: int, height: int) -> _Disc:
        side = round(height * rng.uniform(0.1, 0.35))
        mask = Image.new("L", (side, side))
        ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
        room = np.array([width, height])
        return _Disc(_world(rng, side, side, leaves=12), mask, room * rng.uniform(0.2, 0.8, 2) - side / 2,
                     room * rng.uniform(0.1, 0.4, 2), rng.uniform(0.05, 0.25, 2), rng.uniform(0, 6, 2))  # fmt: skip

    def position(self, seconds: float) -> tuple[int, int]:
        """The left upper corner in px."""
        x, y = self.centre + self.radius * np.sin(2 * np.pi * self.speed * seconds + self.phase)
        return round(x), round(y)


def _world(rng: np.random.Generator, width: int, height: int, leaves: int = 300) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    side = min(width, height)
    for radius in np.sort(side / 2 * rng.uniform(0.1, 1, leaves) ** 2)[::-1]:  # small discs in front
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        squeeze, colour = rng.uniform(0.4, 1.0), tuple(int(c) for c in rng.uniform(50, 200) + rng.uniform(-30, 30, 3))
        draw.ellipse((x - radius, y - radius * squeeze, x + radius, y + radius * squeeze), fill=colour)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(rng.normal(0, 1, (3, height, width))) / np.maximum(frequency, 1 / side)
    texture = np.fft.irfft2(spectrum, (height, width))
    texture = 10 * (texture / texture.std()).mean(0)[..., None]
    return Image.fromarray((np.asarray(picture) + texture).clip(0, 255).astype(np.uint8))


def _encode(path: Path, frames: Iterator[np.ndarray] | Sequence[np.ndarray], kind: Kind) -> None:
    with ExitStack() as closing:
        container = closing.enter_context(av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}))
        stream = container.add_stream("libx264", rate=FPS, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = kind.width, kind.height, "yuv420p", kind.gop
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
