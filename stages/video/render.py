"""A view and decoded frames in, pixels at any size out: one function for teacher, student and companion shards."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cache.view import View


def render(frames: Sequence[np.ndarray], view: View, size: int, render_via: int | None = None) -> np.ndarray:
    """What `view` shows of a clip, as contiguous uint8 [T, 3, size, size].

    `frames`: T of uint8 [H, W, 3], whole upright frames, already those of `view.frames` in their order. The box may fall
    between pixels, and its shape is not kept (the seed's `keep_ratio=False`). Pillow's bilinear filter widens with the
    scale when it shrinks (a triangle, antialiased), so every size shows the same picture.

    `via`: the seed's way to a student's input, for parity: the picture at size `via` (the teacher's 224), then plain
    bilinear without antialiasing. At half of `via` this is the mean of 2×2 pixels; at 160, 96 or 72 it aliases.
    """
    assert len(frames) == len(view.frames), f"{len(frames)} frames for a view of {len(view.frames)}"
    height, width = frames[0].shape[:2]
    top, left, box_height, box_width = (float(part) for part in view.box)
    # Rounding may carry the far edges beyond the frame by less than a millionth; Pillow refuses that.
    box = (left * width, top * height, min((left + box_width) * width, width), min((top + box_height) * height, height))
    first = render_via or size
    pixels = np.stack(
        [np.asarray(Image.fromarray(f).resize((first, first), Image.Resampling.BILINEAR, box)) for f in frames]
    )
    pixels = pixels.transpose(0, 3, 1, 2)
    if render_via is not None:
        floats = torch.from_numpy(pixels.astype(np.float32))
        shrunk = resize(floats, [size, size], InterpolationMode.BILINEAR, antialias=False)
        pixels = shrunk.round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(pixels[..., ::-1] if view.flip else pixels)


def frames_of(views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """The frames that views of one clip need, [n] int32, sorted and each once, and where each view's are among them, int
    [V,T]: what one decode serves."""
    needed, places = np.unique(np.stack([view.frames for view in views]), return_inverse=True)
    return needed, places.reshape(len(views), -1)


def shrunk(pictures: np.ndarray, size: int) -> np.ndarray:
    """Finished pictures, uint8 [T,3,S,S], at another size, antialiased."""
    if pictures.shape[-1] == size:
        return pictures
    return resize(torch.from_numpy(np.ascontiguousarray(pictures)), [size, size], antialias=True).numpy()
