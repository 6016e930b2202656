"""Rendering on the device: workers cut out the pixels that views need, and the device shrinks the pixels of all clips at once.

The pictures equal those of `render`, up to rounding. `render`'s filter is linear: it is two matrix products, with weights
for rows and for columns that each clip has of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cache.view import View

Rendering = tuple[int, int | None]  # size of the pictures in px, and `render_via` (see `render`)


@dataclass(frozen=True, eq=False)
class PixelWindow:
    """The pixels that one view needs of its frames: the view's box, and a margin as wide as the filter reaches."""

    pixels: Sequence[np.ndarray]  # T frames, uint8 [h,w,3]
    # Of rows, then of columns: start and length of the box, and length of the window, in pixels of the window.
    spans: tuple[tuple[float, float, int], tuple[float, float, int]]
    flip: bool


@dataclass(frozen=True, eq=False)
class PixelWindows:
    """The pixel windows of B views."""

    pixels: Tensor  # uint8 [B,T,H,W,3]: each view's window at the top left, zeros elsewhere
    spans: Tensor  # float64 [B,2,3], see `PixelWindow`
    flip: Tensor  # bool [B]
    renderings: tuple[Rendering, ...]  # to be rendered on the device

    def map(self, function: Callable[[Tensor], Tensor]) -> PixelWindows:
        return replace(self, pixels=function(self.pixels), spans=function(self.spans), flip=function(self.flip))


def cut_window(frames: Sequence[np.ndarray], view: View, renderings: Sequence[Rendering]) -> PixelWindow:
    """A copy of the pixels that `render_windows` needs for these renderings of a view.

    `frames`: the view's frames in its order, whole, uint8 [H,W,3].
    """
    smallest = min(render_via or size for size, render_via in renderings)
    slices, spans = [], []
    for axis in (0, 1):
        pixels = frames[0].shape[axis]
        start, length = float(view.box[axis]) * pixels, float(view.box[axis + 2]) * pixels
        reach = max(1.0, length / smallest)  # of the triangle filter, to either side
        low, high = max(0, int(start - reach)), min(pixels, int(np.ceil(start + length + reach)))
        slices.append(slice(low, high))
        spans.append((start - low, length, high - low))
    return PixelWindow([frame[tuple(slices)].copy() for frame in frames], tuple(spans), view.flip)


def stack_windows(windows: Sequence[PixelWindow | None], frames: int, renderings: Sequence[Rendering]) -> PixelWindows:
    """One batch of pixel windows. None gives a black clip of `frames` frames."""
    present = [window for window in windows if window is not None]
    height, width = (max((window.spans[axis][2] for window in present), default=1) for axis in (0, 1))
    pixels = np.zeros((len(windows), frames, height, width, 3), np.uint8)
    spans, flip = np.tile(np.array([0.0, 1.0, 1.0]), (len(windows), 2, 1)), np.zeros(len(windows), bool)
    for i, window in enumerate(windows):
        if window is not None:
            for target, frame in zip(pixels[i], window.pixels, strict=True):
                target[: frame.shape[0], : frame.shape[1]] = frame
            spans[i], flip[i] = window.spans, window.flip
    return PixelWindows(*map(torch.from_numpy, (pixels, spans, flip)), tuple(renderings))


def render_windows(
    windows: PixelWindows, size: int, render_via: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """uint8 [B,T,3,size,size] on the windows' device: the pictures of `render`; some pixels differ by one grey level.

    `dtype` of the products: by default float16 on CUDA (the error of a value is at most 0.1 before rounding), else
    float32.
    """
    first_size, device = render_via or size, windows.pixels.device
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    b, t, h, w, _ = windows.pixels.shape
    row_weights = _weights(windows.spans[:, 0], h, first_size).to(dtype)
    column_weights = _weights(windows.spans[:, 1], w, first_size)
    column_weights = torch.where(windows.flip[:, None, None], column_weights.flip(1), column_weights).to(dtype)
    planes = windows.pixels.movedim(-1, 2).to(dtype, memory_format=torch.contiguous_format)  # [B,T,3,H,W]
    rows = _rounded(planes.reshape(b, t * 3 * h, w) @ column_weights.mT)  # Pillow rounds at this point, too
    pictures = _rounded(row_weights[:, None] @ rows.view(b, t * 3, h, first_size))
    pictures = pictures.view(b, t, 3, first_size, first_size)
    if render_via is not None:
        flat = resize(pictures.float().flatten(0, 1), [size, size], InterpolationMode.BILINEAR, antialias=False)
        pictures = flat.round().clamp(0, 255).view(b, t, 3, size, size)
    return pictures.to(torch.uint8)


def _weights(spans: Tensor, pixels: int, size: int) -> Tensor:
    """float64 [B,size,pixels]: Pillow's bilinear filter, a triangle that is as wide as the scale when it shrinks."""
    start, length, window_length = (part[:, None, None] for part in spans.unbind(1))
    scale = length / size
    centres = start + (torch.arange(size, device=spans.device)[:, None] + 0.5) * scale
    places = torch.arange(pixels, device=spans.device)
    weights = (1 - (places + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights.masked_fill(places >= window_length, 0)
    return weights / weights.sum(2, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
