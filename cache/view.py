"""Views: which frames of a clip a net sees, and which part of each frame. A view has no resolution.

A view is a pure function of (policy, shard, key, index, frames, aspect). The random words come from numpy's raw
Philox4x64-10 stream, whose key is a hash of (policy seed, shard, key, index). Our own integer arithmetic turns the words
into numbers, since the distributions of `numpy.random.Generator` may change between versions of numpy.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from numbers import Integral
from typing import Literal

import numpy as np

from cache.errors import ReskdError

BLOCK = 64  # rows of a block: the unit that training orders permute, and one chunk of feature maps

# Where the words of each purpose begin in the stream: a policy with another crop draws the same frames and the same flip.
_FLIP, _BOX, _FRAMES = 0, 1, 41
_ATTEMPTS = 10  # random_resized_crop tries so often, with four words each time
# Limits on policies of others, such as a checkpoint's: far beyond what nets take, and no burden for a machine.
MAX_NUM_FRAMES, MAX_STRIDE, MAX_CLIPS = 4096, 1 << 20, 1000
_GRID = 1 << 24  # boxes are multiples of 2^-24, exact in float32: top + height never exceeds 1
_EXACT = Context(prec=20)  # decimal's exp and ln are correctly rounded; those of libm differ between machines


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn. `num_frames` is T; `center_fraction` and `scales` are relative to the short side.

    Without jitter a video has `views` different views: `clips` clips in time, each with `crops` crops (three_crop: 3, else
    1). View v is clip v // crops with crop v % crops.
    Raises ReskdError for a value outside its range.
    """

    seed: int = 0
    sampling: Literal["segments", "dense", "dense_1x"] = "segments"
    num_frames: int = 8
    stride: int = 1
    jitter: bool = True
    crop: Literal["multi_scale_crop", "random_resized_crop", "center", "three_crop", "full"] = "multi_scale_crop"
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    center_fraction: float = 0.875
    flip: float = 0.5
    clips: int = 1

    def __post_init__(self):
        checks = {
            "sampling": self.sampling in _SAMPLINGS,
            "seed": isinstance(self.seed, Integral),
            "num_frames": _is_count(self.num_frames, MAX_NUM_FRAMES),
            "stride": _is_count(self.stride, MAX_STRIDE),
            "crop": self.crop in _CROPS,
            "scales": len(self.scales) > 0 and all(0 < s <= 1 for s in self.scales),
            "area": len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1,
            "ratio": len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1] < math.inf,
            "center_fraction": 0 < self.center_fraction <= 1,
            "flip": 0 <= self.flip <= 1,
            "clips": _is_count(self.clips, MAX_CLIPS),
        }
        for name, ok in checks.items():
            if not ok:
                raise ReskdError(f"view policy: {name} = {getattr(self, name)!r} is out of range.")
        if self.clips > 1 and self.jitter:
            raise ReskdError(
                f"view policy: clips = {self.clips} goes with jitter = False: with jitter, every view draws a clip of its own."
            )

    @property
    def crops(self) -> int:
        return 3 if self.crop == "three_crop" else 1

    @property
    def views(self) -> int:
        """Number of different views of a video, without jitter."""
        return self.clips * self.crops

    def to_json(self) -> dict:
        """The JSON in identities. `clips` is left out if it is 1: identities that are older than this key stay the same."""
        values = asdict(self)
        return values if self.clips > 1 else {name: value for name, value in values.items() if name != "clips"}


def _is_count(value: int, most: int) -> bool:
    return isinstance(value, Integral) and 1 <= value <= most


@dataclass(frozen=True, eq=False)
class View:
    """What a net sees of a clip."""

    frames: np.ndarray  # [T] int32, indices into the clip
    box: np.ndarray  # [4] float32 top, left, height, width as fractions of the upright frame
    flip: bool  # mirrored left to right


def sample_view(policy: ViewPolicy, *, shard: str, key: str, index: int, num_frames: int, aspect: float) -> View:
    """View number `index` of a video of `num_frames` frames whose upright frame has `aspect` = width / height.

    Sampling and crops are those of mmaction2's SampleFrames, MultiScaleCrop (13 fixed positions), RandomResizedCrop,
    CenterCrop and ThreeCrop, in fractions instead of pixels. A video with fewer than T frames is repeated.
    Raises ReskdError if the clip has no frames or no area.
    """
    if num_frames < 1:
        raise ReskdError(f"{shard}, clip {key}: a clip of {num_frames} frames has no views.")
    if not 0 < aspect < math.inf:
        raise ReskdError(f"{shard}, clip {key}: width / height is {aspect}: the frame has no area.")
    words = _words(policy.seed, shard, key, index, _FRAMES + policy.num_frames)
    clip = index // policy.crops % policy.clips
    frames = _SAMPLINGS[policy.sampling](policy, num_frames, clip, words[_FRAMES:])
    top, left, height, width = _CROPS[policy.crop](policy, aspect, index, words[_BOX:_FRAMES])
    flip = _uniform(words[_FLIP]) < policy.flip
    return View(np.array(frames, dtype=np.int32), _box(top, left, height, width), flip)


def _words(seed: int, shard: str, key: str, index: int, count: int) -> list[int]:
    """The first `count` 64-bit words of the stream of (seed, shard, key, index)."""
    name = json.dumps(["reskd view", int(seed), shard, key, int(index)], separators=(",", ":"))
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)).random_raw(count).tolist()


def _uniform(word: int) -> float:
    """A number in [0, 1), from the 53 high bits of a word."""
    return (word >> 11) * 2.0**-53


def _below(word: int, n: int) -> int:
    """An integer in [0, n): the high word of the product (Lemire), whose bias is below n / 2^64."""
    return (word * n) >> 64


def _segments(policy: ViewPolicy, n: int, clip: int, words: list[int]) -> list[int]:
    """One frame of each of T equal segments: a random frame with jitter, else the middle one.

    Clip c of C is c/C of a segment later than the middle, modulo a segment. So the second of two clips has the first frame
    of each segment, as in mmaction2's twice_sample.
    """
    count = policy.num_frames
    if not policy.jitter:
        shift = (policy.clips + 2 * clip) % (2 * policy.clips)  # in units of 1/2C of a segment
        return [(2 * policy.clips * i + shift) * n // (2 * policy.clips * count) for i in range(count)]
    if n <= count:
        return [round(i * n / count) % n for i in range(count)]
    length = n // count
    return [i * length + _below(words[i], length) for i in range(count)]


def _dense(policy: ViewPolicy, n: int, clip: int, words: list[int]) -> list[int]:
    """T frames, `stride` apart, from one start; they continue at frame 0 if n is too small.

    The start is random with jitter. Otherwise all starts are cut into C equal parts, and clip c begins in the middle of part c.
    """
    starts = max(1, n - policy.num_frames * policy.stride + 1)
    start = _below(words[0], starts) if policy.jitter else (2 * clip + 1) * starts // (2 * policy.clips)
    return [(start + i * policy.stride) % n for i in range(policy.num_frames)]


def _dense_1x(policy: ViewPolicy, n: int, clip: int, words: list[int]) -> list[int]:
    """As `_dense`, but without jitter the clips lie as in mmaction2 1.x (`dense` has the clips of 0.x).

    The first of several clips begins with the first frame, the last clip ends with the last frame. One clip alone lies in
    the middle. The starts are rounded as mmaction2 rounds them: a half goes to the even number.
    """
    if policy.jitter:
        return _dense(policy, n, clip, words)
    free = max(0, n - (policy.num_frames - 1) * policy.stride - 1)
    start = free // 2 if policy.clips == 1 else round(clip * (free / (policy.clips - 1)))
    return [(start + i * policy.stride) % n for i in range(policy.num_frames)]


_SAMPLINGS = {"segments": _segments, "dense": _dense, "dense_1x": _dense_1x}


def _short_side(aspect: float) -> tuple[float, float]:
    """Height and width, as fractions of the frame, of the square on the short side."""
    return min(1.0, aspect), min(1.0, 1 / aspect)


def _multi_scale_crop(policy: ViewPolicy, aspect: float, index: int, words: list[int]):
    sizes = [(h, w) for i, h in enumerate(policy.scales) for j, w in enumerate(policy.scales) if abs(i - j) <= 1]
    scale_h, scale_w = sizes[_below(words[0], len(sizes))]
    row, column = _POSITIONS[_below(words[1], len(_POSITIONS))]
    short_h, short_w = _short_side(aspect)
    height, width = scale_h * short_h, scale_w * short_w
    return (1 - height) * row / 4, (1 - width) * column / 4, height, width


# (down, right) in quarters of the free space: corners, centre, middles of the sides, centres of the quarters.
_POSITIONS = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))


def _random_resized_crop(policy: ViewPolicy, aspect: float, index: int, words: list[int]):
    low, high = (_EXACT.ln(Decimal(r)) for r in policy.ratio)
    for attempt in range(_ATTEMPTS):
        u_area, u_ratio, u_top, u_left = (_uniform(w) for w in words[4 * attempt : 4 * attempt + 4])
        area = policy.area[0] + u_area * (policy.area[1] - policy.area[0])
        ratio = float(_EXACT.exp(_EXACT.fma(Decimal(u_ratio), high - low, low)))
        height, width = math.sqrt(area * aspect / ratio), math.sqrt(area * ratio / aspect)
        if height <= 1 and width <= 1:
            return (1 - height) * u_top, (1 - width) * u_left, height, width
    return _centred(*_short_side(aspect))


def _center(policy: ViewPolicy, aspect: float, index: int, words: list[int]):
    return _centred(*(policy.center_fraction * side for side in _short_side(aspect)))


def _three_crop(policy: ViewPolicy, aspect: float, index: int, words: list[int]):
    """A square on the short side: left, right or middle of a wide frame; top, bottom or middle of a tall frame."""
    height, width = _short_side(aspect)
    position = (0.0, 1.0, 0.5)[index % 3]
    return (1 - height) * position, (1 - width) * position, height, width


def _full(policy: ViewPolicy, aspect: float, index: int, words: list[int]):
    return 0.0, 0.0, 1.0, 1.0


def _centred(height: float, width: float):
    return (1 - height) / 2, (1 - width) / 2, height, width


_CROPS = {
    "multi_scale_crop": _multi_scale_crop,
    "random_resized_crop": _random_resized_crop,
    "center": _center,
    "three_crop": _three_crop,
    "full": _full,
}


def _box(top: float, left: float, height: float, width: float) -> np.ndarray:
    """The box, float32, rounded to multiples of 2^-24, inside the frame and never empty."""
    height, width = (min(_GRID, max(1, round(side * _GRID))) for side in (height, width))
    top, left = min(round(top * _GRID), _GRID - height), min(round(left * _GRID), _GRID - width)
    return (np.array([top, left, height, width], dtype=np.float64) / _GRID).astype(np.float32)
