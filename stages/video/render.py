"""A view and decoded frames in, pixels of any size out: one function for teacher, student and pack."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cache.view import View

Rendering = tuple[int, int | None]  # size of the pictures in px, and `render_via` (see `render`)


def render(frames: Sequence[np.ndarray], view: View, size: int, render_via: int | None = None) -> np.ndarray:
    """The pictures that `view` shows of a clip, contiguous uint8 [T,3,size,size].

    `frames`: T whole upright frames, uint8 [H,W,3], already those of `view.frames` in the same order. The edges of the
    view's box may lie between pixels. The box becomes a square (upstream's `keep_ratio=False`). Pillow's bilinear filter
    is antialiased: its triangle widens with the scale when it shrinks. So every size shows the same picture.

    `render_via`: px. As upstream makes a student's input: first the picture at this size (the teacher's 224), then plain
    bilinear interpolation to `size`, without antialiasing. For half of `render_via`, this is the mean of 2×2 pixels; for
    160, 96 or 72 px, it aliases.
    """
    assert len(frames) == len(view.frames), f"{len(frames)} frames for a view of {len(view.frames)}"
    height, width = frames[0].shape[:2]
    top, left, box_height, box_width = (float(part) for part in view.box)
    # Rounding may move the far edges beyond the frame by less than a millionth; Pillow refuses such a box.
    box = (left * width, top * height, min((left + box_width) * width, width), min((top + box_height) * height, height))
    first_size = (render_via or size,) * 2
    pixels = np.stack(
        [np.asarray(Image.fromarray(f).resize(first_size, Image.Resampling.BILINEAR, box)) for f in frames]
    )
    pixels = pixels.transpose(0, 3, 1, 2)
    if render_via is not None:
        floats = torch.from_numpy(pixels.astype(np.float32))
        smaller = interpolate(floats, (size, size), mode="bilinear")
        pixels = smaller.round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(pixels[..., ::-1] if view.flip else pixels)


def needed_frames(views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """The frames that V views of one clip need, [n] int32, sorted and unique; and each view's positions in them, int [V,T].

    So one decode serves all views."""
    needed, places = np.unique(np.stack([view.frames for view in views]), return_inverse=True)
    return needed, places.reshape(len(views), -1)


def resize_pictures(pictures: np.ndarray, size: int) -> np.ndarray:
    """Rendered pictures, uint8 [T,3,S,S], antialiased to uint8 [T,3,size,size].

    Torch computes in integers, with the same pixels on every CPU; versions of this program that used torchvision computed in
    floats on CPUs without AVX2, and rounded some pixels otherwise there.
    """
    if pictures.shape[-1] == size:
        return pictures
    tensor = torch.from_numpy(np.ascontiguousarray(pictures))
    return interpolate(tensor, (size, size), mode="bilinear", antialias=True).numpy()
