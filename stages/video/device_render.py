"""Rendering on the device: workers cut out the pixels that views need, and the device shrinks them, all clips at once.

The pictures are those of `render`, up to rounding: its filter is linear, and so two products with a clip's own weights.
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

Rendering = tuple[int, int | None]  # px of the pictures, and of what they are rendered via (see `render`)


@dataclass(frozen=True, eq=False)
class Cut:
    """What one view needs of its frames: the box, and around it as much as the filter reaches."""

    pixels: Sequence[np.ndarray]  # T of uint8 [h,w,3]
    spans: tuple[tuple[float, float, int], tuple[float, float, int]]  # of rows and columns: start and length of the box
    flip: bool  # and pixels there are, in pixels of the cut


@dataclass(frozen=True, eq=False)
class Windows:
    """The cuts of B views."""

    pixels: Tensor  # uint8 [B,T,H,W,3]: a view's own at the top left, zeros beyond
    spans: Tensor  # float64 [B,2,3], as of `Cut`
    flip: Tensor  # bool [B]
    renderings: tuple[Rendering, ...]  # that are to be drawn

    def map(self, function: Callable[[Tensor], Tensor]) -> Windows:
        return replace(self, pixels=function(self.pixels), spans=function(self.spans), flip=function(self.flip))


def cut(frames: Sequence[np.ndarray], view: View, renderings: Sequence[Rendering]) -> Cut:
    """What `draw` needs of these frames (whole, uint8 [H,W,3], those of the view) for the given renderings. A copy."""
    smallest = min(render_via or size for size, render_via in renderings)
    slices, spans = [], []
    for axis in (0, 1):
        pixels = frames[0].shape[axis]
        start, length = float(view.box[axis]) * pixels, float(view.box[axis + 2]) * pixels
        reach = max(1.0, length / smallest)  # of the triangle, to either side
        low, high = max(0, int(start - reach)), min(pixels, int(np.ceil(start + length + reach)))
        slices.append(slice(low, high))
        spans.append((start - low, length, high - low))
    return Cut([frame[tuple(slices)].copy() for frame in frames], tuple(spans), view.flip)


def windows_of(cuts: Sequence[Cut | None], frames: int, renderings: Sequence[Rendering]) -> Windows:
    """One batch of them; None gives a black clip of so many frames."""
    present = [c for c in cuts if c is not None]
    height, width = (max((c.spans[axis][2] for c in present), default=1) for axis in (0, 1))
    pixels = np.zeros((len(cuts), frames, height, width, 3), np.uint8)
    spans, flip = np.tile(np.array([0.0, 1.0, 1.0]), (len(cuts), 2, 1)), np.zeros(len(cuts), bool)
    for i, c in enumerate(cuts):
        if c is not None:
            for into, frame in zip(pixels[i], c.pixels, strict=True):
                into[: frame.shape[0], : frame.shape[1]] = frame
            spans[i], flip[i] = c.spans, c.flip
    return Windows(*map(torch.from_numpy, (pixels, spans, flip)), tuple(renderings))


def draw(windows: Windows, size: int, render_via: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """uint8 [B,T,3,size,size]: what `render` gives of each view, but for a grey level here and there.

    Where the windows are. `dtype` of the products: float16 on CUDA (a pixel and its mean are 0.1 off at most before they
    are rounded), else float32.
    """
    first, device = render_via or size, windows.pixels.device
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    b, t, h, w, _ = windows.pixels.shape
    down = _weights(windows.spans[:, 0], h, first).to(dtype)
    across = _weights(windows.spans[:, 1], w, first)
    across = torch.where(windows.flip[:, None, None], across.flip(1), across).to(dtype)
    planes = windows.pixels.movedim(-1, 2).to(dtype, memory_format=torch.contiguous_format)  # [B,T,3,H,W]
    rows = _rounded(planes.reshape(b, t * 3 * h, w) @ across.mT).view(b, t * 3, h, first)  # Pillow rounds here, too
    pictures = _rounded(down[:, None] @ rows).view(b, t, 3, first, first)
    if render_via is not None:
        flat = resize(pictures.float().flatten(0, 1), [size, size], InterpolationMode.BILINEAR, antialias=False)
        pictures = flat.round().clamp(0, 255).view(b, t, 3, size, size)
    return pictures.to(torch.uint8)


def _weights(spans: Tensor, pixels: int, size: int) -> Tensor:
    """float64 [B,size,pixels]: Pillow's bilinear filter, a triangle as wide as the scale where it shrinks."""
    start, length, own = (part[:, None, None] for part in spans.unbind(1))
    scale = length / size
    centres = start + (torch.arange(size, device=spans.device)[:, None] + 0.5) * scale
    places = torch.arange(pixels, device=spans.device)
    weights = (1 - (places + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights.masked_fill(places >= own, 0)
    return weights / weights.sum(2, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
