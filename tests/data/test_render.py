"""One picture at every size: what the student sees is what the teacher saw, shrunk."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, interpolate

from cache.view import View
from stages.video.decode import decode_frames, probe
from stages.video.render import render
from tests.media import encode_video, moving_square

boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.4, 1), st.floats(0.4, 1)).map(
    lambda b: (b[0] * (1 - b[2]), b[1] * (1 - b[3]), b[2], b[3])
)


@cache
def scene(height: int, width: int, t: int = 2) -> np.ndarray:
    """Natural-ish frames [t, height, width, 3]: soft blobs of all scales, the same picture at any resolution."""
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width)[None, :] + 0.5) / width
    rng = np.random.default_rng(3)
    frames = np.full((t, height, width, 3), 110.0)
    for _ in range(40):
        (cy, cx), spread, colour = rng.uniform(0, 1, 2), rng.uniform(0.03, 0.3), rng.uniform(-60, 60, 3)
        for i in range(t):
            blob = np.exp(-((y - cy - 0.02 * i) ** 2 + (x - cx + 0.03 * i) ** 2) / (2 * spread**2))
            frames[i] += blob[..., None] * colour
    return frames.round().clip(0, 255).astype(np.uint8)


def a_view(box, flip=False, t=2) -> View:
    return View(np.arange(t, dtype=np.int32), np.array(box, dtype=np.float32), flip)


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(np.float64) - b.astype(np.float64))


def area_shrunk(pixels: np.ndarray, factor: int) -> np.ndarray:
    t, c, h, w = pixels.shape
    return pixels.reshape(t, c, h // factor, factor, w // factor, factor).mean(axis=(3, 5))


def triangle_weights(start: float, end: float, source: int, target: int) -> np.ndarray:
    """[target, source] in float64: an antialiased triangle filter over [start, end) of `source` pixels."""
    scale = (end - start) / target
    centres = start + (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


def reference(frames: np.ndarray, box, size: int) -> np.ndarray:
    """An independent rendering [T, 3, size, size] in float64, by dense matrices."""
    top, left, height, width = (float(np.float32(part)) for part in box)
    rows, columns = frames.shape[1:3]
    vertical = triangle_weights(top * rows, (top + height) * rows, rows, size)
    horizontal = triangle_weights(left * columns, (left + width) * columns, columns, size)
    return np.einsum("yh,thwc,xw->tcyx", vertical, frames.astype(np.float64), horizontal, optimize=True)


@settings(max_examples=25, deadline=None)
@given(box=boxes, flip=st.booleans(), student=st.sampled_from([112, 56]))
def test_the_student_sees_what_the_teacher_sees_shrunk(box, flip, student):
    frames, view = scene(256, 340), a_view(box, flip)
    teacher = area_shrunk(render(frames, view, 224), 224 // student)
    off = differences(render(frames, view, student), teacher)
    assert off.mean() < 0.5 and off.max() < 4  # grey levels of 255: rounding, and a wider filter for the student


@settings(max_examples=15, deadline=None)
@given(box=boxes, flip=st.booleans())
def test_a_companion_of_lower_resolution_shows_the_same_picture(box, flip):
    view = a_view(box, flip)
    off = differences(render(scene(256, 340), view, 56), render(scene(128, 170), view, 56))
    assert off.mean() < 0.5 and off.max() < 4


@settings(max_examples=25, deadline=None)
@given(box=boxes, size=st.sampled_from([24, 56, 112, 224]))
def test_fractional_boxes_agree_with_an_independent_filter(box, size):
    frames = np.random.default_rng(0).integers(0, 256, (1, 97, 130, 3), dtype=np.uint8)  # noise: the hardest content
    off = differences(render(frames, a_view(box, t=1), size), reference(frames, box, size))
    assert off.max() < 2


def test_half_a_source_pixel_shifts_the_picture_by_half_a_pixel():
    ramp = np.broadcast_to((2 * np.arange(100, dtype=np.uint8))[None, None, :, None], (1, 80, 100, 3)).copy()
    here, there = (render(ramp, a_view((0.25, left, 0.5, 0.5), t=1), 50) for left in (0.25, 0.25 + 0.5 / 100))
    assert (here == (2 * np.arange(25, 75))).all()
    assert (there == 2 * np.arange(25, 75) + 1).all()


@settings(max_examples=10, deadline=None)
@given(box=boxes, render_via=st.sampled_from([None, 112]))
def test_a_flip_mirrors_the_finished_picture(box, render_via):
    frames = scene(90, 120)
    straight = render(frames, a_view(box), 56, render_via=render_via)
    mirrored = render(frames, a_view(box, flip=True), 56, render_via=render_via)
    assert np.array_equal(mirrored, straight[..., ::-1])


def test_the_seeds_way_is_plain_bilinear_of_the_teachers_picture():
    frames, view = scene(256, 340), a_view((0.1, 0.07, 0.875, 0.66), flip=True)
    teacher = torch.from_numpy(render(frames, view, 224)).float()
    half = render(frames, view, 112, render_via=224)
    assert differences(half, avg_pool2d(teacher, 2).numpy()).max() < 0.501
    plain = interpolate(teacher, size=(72, 72), mode="bilinear", align_corners=False).numpy()
    assert differences(render(frames, view, 72, render_via=224), plain).max() < 0.501


def test_the_seeds_way_aliases_and_ours_does_not():
    stripes = np.tile(np.array([0, 0, 255], dtype=np.uint8), 120)[None, None, :, None]
    frames = np.broadcast_to(stripes, (1, 360, 360, 3)).copy()
    view = a_view((0, 0, 1, 1), t=1)
    assert render(frames, view, 72)[..., 2:-2].std() < 25 < render(frames, view, 72, render_via=360)[..., 2:-2].std()


def test_output_is_contiguous_whatever_the_view():
    for flip in (False, True):
        for render_via in (None, 48):
            out = render(scene(60, 80), a_view((0, 0, 1, 1), flip), 24, render_via=render_via)
            assert out.flags.c_contiguous and out.dtype == np.uint8 and out.shape == (2, 3, 24, 24)


def test_boxes_that_touch_the_far_edges_render():
    frames = scene(71, 97)
    for side in np.linspace(0.4, 1, 50, dtype=np.float32):
        view = a_view((np.float32(1) - side, np.float32(1) - side, side, side))
        assert render(frames, view, 24).shape == (2, 3, 24, 24)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_renders_upright(rotation):
    upright = moving_square(6, 64, 96)
    stored = np.rot90(upright, rotation // 90, axes=(1, 2))  # counterclockwise; the player turns it back clockwise
    data = encode_video(stored, rotation=rotation)
    info = probe(data)
    assert (info.height, info.width) == (64, 96)
    frames, _ = decode_frames(data, np.arange(6), info.decoder)
    view = a_view((0.1, 0.2, 0.7, 0.6), flip=True, t=6)
    assert differences(render(frames, view, 32), render(upright, view, 32)).mean() < 4
