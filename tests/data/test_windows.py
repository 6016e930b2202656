"""Rendering in two steps, in workers and on the device: the pictures of `render`."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.view import View
from stages.video.device_render import cut_window, render_windows, stack_windows
from stages.video.render import render

boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.3, 1), st.floats(0.3, 1)).map(
    lambda b: (b[0] * (1 - b[2]), b[1] * (1 - b[3]), b[2], b[3])
)
views = st.builds(
    lambda box, flip: View(np.arange(2, dtype=np.int32), np.array(box, np.float32), flip), boxes, st.booleans()
)


def noise(*shape: int) -> np.ndarray:
    """The hardest content: uint8 [2,H,W,3]."""
    return np.random.default_rng(shape).integers(0, 256, (2, *shape, 3), dtype=np.uint8)


SHAPES = ((40, 60), (97, 130), (170, 227))  # one of them is enlarged to 56 px by most boxes


@settings(max_examples=20, deadline=None)
@given(st.lists(views, min_size=3, max_size=3), st.sampled_from([(56, None), (24, None), (112, None), (36, 56)]))
def test_a_batch_of_shapes_is_what_each_view_renders_to(drawn, rendering):
    frames = [noise(*shape) for shape in SHAPES]
    cuts = [cut_window(f, view, [rendering, (30, None)]) for f, view in zip(frames, drawn, strict=True)]
    wanted = np.stack([render(f, view, *rendering) for f, view in zip(frames, drawn, strict=True)])
    given_ = render_windows(stack_windows(cuts, 2, [rendering]), *rendering)
    assert given_.dtype == torch.uint8 and given_.shape == wanted.shape
    off = np.abs(given_.numpy().astype(int) - wanted)
    assert off.max() <= 1 and (off > 0).mean() < 0.05  # sums that end in .5
    half = render_windows(stack_windows(cuts, 2, [rendering]), *rendering, dtype=torch.float16)
    half = np.abs(half.numpy().astype(int) - wanted)
    assert half.max() <= 2 and (half > 0).mean() < 0.2  # what CUDA computes in


def test_a_picture_of_the_frames_own_size_is_the_frame():
    frames, view = noise(48, 48), View(np.arange(2, dtype=np.int32), np.array((0, 0, 1, 1), np.float32), False)
    windows = stack_windows([cut_window(frames, view, [(48, None)])], 2, [(48, None)])
    assert np.array_equal(render_windows(windows, 48)[0].numpy(), frames.transpose(0, 3, 1, 2))


@settings(max_examples=20, deadline=None)
@given(views)
def test_only_what_the_filter_reaches_travels(view):
    frames = noise(170, 227)
    cut_ = cut_window(frames, view, [(56, None)])
    for axis, pixels in enumerate((170, 227)):
        length = float(view.box[axis + 2]) * pixels
        assert cut_.spans[axis][2] <= length + 2 * max(1, length / 56) + 2
        assert all(frame.shape[axis] == cut_.spans[axis][2] for frame in cut_.pixels)
    assert not any(np.shares_memory(frame, frames) for frame in cut_.pixels)


@pytest.mark.parametrize("none", ["one", "all"])
def test_a_view_that_could_not_be_decoded_is_black(none):
    view = View(np.arange(2, dtype=np.int32), np.array((0.1, 0.1, 0.8, 0.8), np.float32), True)
    cuts = [None, None if none == "all" else cut_window(noise(40, 60), view, [(24, None)])]
    pictures = render_windows(pickle.loads(pickle.dumps(stack_windows(cuts, 2, [(24, None)]))), 24)
    assert not pictures[0].any() and bool(pictures[1].any()) == (none == "one")
