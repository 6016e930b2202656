"""Real videos of many kinds, in the folder that RESKD_CLIPS names; -s prints the table of each file's fate."""

import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stages.video.decode import DecodeError, VideoInfo, decode_frames, probe

FOLDER = os.environ.get("RESKD_CLIPS")
pytestmark = pytest.mark.skipif(not FOLDER, reason="RESKD_CLIPS names no folder of real videos")
HAS_DECORD = importlib.util.find_spec("decord") is not None
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel for this platform")

# name: (decoder where decord is installed, frames, width, height, frames per second); None: unreadable
FATES = {
    "av1_video.mkv": ("pyav-seek", 125, 640, 360, 25),
    "bt709_full_range.mp4": ("decord", 30, 1280, 720, 30),
    "corrupted.mp4": None,
    "flipping_a_pancake.mkv": ("decord", 310, 426, 240, 30),
    "h264_10bits.mp4": ("pyav-seek", 30, 200, 200, 30),
    "h265_10bits.mp4": ("pyav-seek", 30, 200, 200, 30),
    "h265_video.mp4": ("pyav-seek", 10, 128, 128, 10),
    "kinetics_part_0.mp4": ("decord", 32, 340, 256, 30),
    "nasa_13013.mp4": ("decord", 390, 480, 270, 30000 / 1001),
    "ucf_test.avi": ("pyav", 164, 320, 240, 25),
    "unordered.mov": ("decord", 4, 50, 50, 32),
    "video_0.mov": ("decord", 3, 568, 320, 30),
    "video_90.mov": ("decord", 3, 320, 568, 30),
    "video_180.mov": ("decord", 3, 568, 320, 30),
    "video_270.mov": ("decord", 3, 320, 568, 30),
}
READABLE = [name for name, fate in FATES.items() if fate]
TEN_BITS = ("h264_10bits.mp4", "h265_10bits.mp4")  # decord's older FFmpeg converts their colours otherwise
BOTH = [name for name in READABLE if FATES[name][0] == "decord" or name in TEN_BITS]


@cache
def load(name: str) -> bytes:
    path = Path(FOLDER) / name
    if not path.exists():
        pytest.skip(f"{name} is not in RESKD_CLIPS")
    return path.read_bytes()


@cache
def fate(name: str) -> VideoInfo | str:
    try:
        return probe(load(name))
    except DecodeError as error:
        return str(error)


def some_indices(frames: int) -> np.ndarray:
    """First, last, and eight between, in no order: decord has to seek."""
    return np.unique(np.linspace(0, frames - 1, 10).round().astype(int))[::-1]


@pytest.mark.parametrize("name", FATES)
def test_the_fate_of_each_file(name):
    info = fate(name)
    if isinstance(info, str):
        line = f"| {name} | unreadable | | | | {info.removeprefix('unreadable video: ')} |"
    else:
        size = f"{info.width}×{info.height}"
        line = f"| {name} | {info.decoder} | {info.frames} | {size} | {info.fps:.2f} | {info.fallback or ''} |"
    if name == next(iter(FATES)):
        print("\n| file | decoder | frames | upright | fps | note |\n|---|---|---|---|---|---|")
    print(f"\n{line}")
    if FATES[name] is None:
        assert isinstance(info, str) and "decoded after" in info
        return
    decoder, *rest = FATES[name]
    assert [info.frames, info.width, info.height] == rest[:3] and info.fps == pytest.approx(rest[3])
    assert info.decoder == (decoder if HAS_DECORD or decoder != "decord" else "pyav-seek")
    assert (info.fallback is None) == (info.decoder == "decord")


@needs_decord
@pytest.mark.parametrize("name", BOTH)
def test_both_decoders_give_the_same_upright_frames(name):
    info, data = fate(name), load(name)
    asked = some_indices(info.frames)
    ours, served = decode_frames(data, asked, "decord")
    assert served == "decord" and ours.shape == (len(asked), info.height, info.width, 3)
    theirs, _ = decode_frames(data, asked, "pyav")
    if name in TEN_BITS:
        assert np.abs(ours.astype(int) - theirs).mean() < 4  # of 255 grey levels; 3.4 measured
    else:
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", READABLE)
def test_a_frame_does_not_depend_on_what_else_is_asked_for(name):
    info, data = fate(name), load(name)
    asked = some_indices(info.frames)
    together, _ = decode_frames(data, asked, info.decoder)
    for position in (0, len(asked) // 2, -1):
        alone, served = decode_frames(data, asked[[position]], info.decoder)
        assert served == info.decoder and np.array_equal(alone[0], together[position])


def test_of_two_video_streams_the_best_is_taken():
    info = fate("nasa_13013.mp4")  # its first stream is 320×180
    assert (info.width, info.height) == (480, 270)
