"""Fewer numbers: interpolation and its inverse, int8 codes, and the same reduction in numpy and in torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.codecs import CODECS, from_stored, scale_and_offset, to_codes
from cache.errors import ReskdError
from cache.reduction import reduce_maps, reduced_shape, upsampling, upsampling_pinv
from stages.teacher.reduction import constants_on, reduce_features

LEVELS = {name: codec.levels for name, codec in CODECS["features"].items() if codec.levels}

SIDES = st.integers(1, 16)
EPS = float(np.finfo(np.float32).eps)


def orthonormal(channels: int, dims: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(3).normal(size=(channels, channels)))[0][:, :dims].astype(np.float32)


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=200)
def test_upsampling_is_torchs_bilinear_interpolation(h, w, height, width):
    maps = np.random.default_rng(h * w).normal(size=(1, 2, h, w))
    ours = np.einsum("ih,jw,bchw->bcij", upsampling(h, height), upsampling(w, width), maps)
    theirs = F.interpolate(torch.from_numpy(maps), (height, width), mode="bilinear", align_corners=False)
    assert np.allclose(ours, theirs.numpy(), rtol=0, atol=1e-12)


@given(SIDES, SIDES)
def test_unsampling_is_its_pseudoinverse(a, b):
    source, target = min(a, b), max(a, b)
    up, down = upsampling(source, target), upsampling_pinv(target, source)
    assert down.shape == (source, target)
    assert np.allclose(up @ down @ up, up) and np.allclose(down @ up @ down, down)  # Penrose's four conditions
    assert np.allclose(up @ down, (up @ down).T) and np.allclose(down @ up, (down @ up).T)


def test_of_a_grid_it_is_the_kronecker_product():
    flat = np.linalg.pinv(np.kron(upsampling(4, 7), upsampling(3, 5)))
    assert np.allclose(np.kron(upsampling_pinv(7, 4), upsampling_pinv(5, 3)), flat)
    maps = np.random.default_rng(0).normal(size=(2, 3, 7, 5, 6)).astype(np.float32)
    ours = reduce_maps(maps, {"grid": [3, 4, 3]}, {})
    theirs = np.einsum("gp,ntpd->ntgd", flat, maps.reshape(2, 3, 35, 6)).reshape(2, 3, 4, 3, 6)
    assert ours.dtype == np.float32 and np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dims", [None, 1, 5, 6])
@pytest.mark.parametrize("grid", [(4, 7, 5), (2, 7, 5), (4, 4, 3), (1, 4, 5), (2, 1, 1)])
def test_numpy_and_torch_reduce_alike(device, grid, dims):
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(2, 4, 7, 5, 6)).astype(np.float32)
    constants = {"scale": np.ones(6, np.float32)}  # of the rounding that comes after: not to be used
    if dims is not None:
        constants |= {"basis": orthonormal(6, dims), "mean": rng.normal(size=6).astype(np.float32)}
    ours = reduce_maps(maps, {"grid": list(grid)}, constants)
    on = constants_on(device, constants)
    theirs = reduce_features(torch.from_numpy(maps).to(device), grid, on).cpu().numpy()
    assert ours.shape == (2, *grid, dims or 6) and ours.dtype == theirs.dtype == np.float32
    assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_time_is_a_mean_of_consecutive_times_and_the_mean_goes_before_the_basis():
    maps = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1, 1) * np.ones((1, 4, 2, 2, 3), np.float32)
    assert reduce_maps(maps, {"grid": [2, 2, 2]}, {})[0, :, 0, 0, 0].tolist() == [0.5, 2.5]
    constants = {"basis": orthonormal(3, 2), "mean": np.array([0.5, 0.5, 0.5], np.float32)}
    reduced = reduce_maps(maps, {"grid": [2, 2, 2]}, constants)
    assert np.allclose(reduced[0, 0], 0, atol=1e-7) and not np.allclose(reduced[0, 1], 0)


# ---- bytes ----


@st.composite
def values_and_range(draw):
    """Numbers [n,d], and the lowest and highest that each channel's range was estimated on."""
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    numbers = st.floats(-1e4, 1e4, width=32)
    ends = draw(hnp.arrays(np.float32, (2, d), elements=numbers))
    return draw(hnp.arrays(np.float32, (n, d), elements=numbers)), ends.min(0), ends.max(0)


@given(values_and_range(), st.sampled_from(sorted(LEVELS)))
@settings(max_examples=300)
def test_codes_are_off_by_half_a_step_inside_the_range_and_go_to_its_end_outside(drawn, codec):
    values, low, high = drawn
    constants = scale_and_offset(low, high, codec)
    codes = to_codes(values, constants, codec)
    assert (
        codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= LEVELS[codec] <= 127
    )  # -128: nothing was written
    back = from_stored(codes, constants)
    assert back.dtype == np.float32
    rounding = 8 * EPS * np.maximum(np.abs(low), np.abs(high)).astype(np.float64) + 1e-35
    inside = values.clip(low, high).astype(np.float64)
    assert (np.abs(back - inside) <= constants["scale"] * (0.5 + 1e-4) + rounding).all()


@given(hnp.arrays(np.float32, 5, elements=st.floats(0, 1e6, width=32)), st.sampled_from(sorted(LEVELS)))
def test_zero_stays_zero_where_maps_are_never_negative(high, codec):
    constants = scale_and_offset(np.zeros(5, np.float32), high, codec)
    codes = to_codes(np.zeros((1, 5), np.float32), constants, codec)
    assert (from_stored(codes, constants) == 0).all()


def test_huge_numbers_go_to_the_ends_and_float16_stays_as_it_is():
    constants = scale_and_offset(np.full(2, -1, np.float32), np.full(2, 3, np.float32))
    codes = to_codes(np.array([[-1e30, 1e30], [-1, 3]], np.float32), constants)
    assert codes.tolist() == [[-LEVELS["int8"], LEVELS["int8"]]] * 2
    half = np.array([[0.1, 7]], np.float16)
    assert (from_stored(half, constants) == half).all()


# ---- what can't be ----


def test_shapes_as_stored():
    assert reduced_shape((8, 7, 7), None, None) == [8, 7, 7]
    assert reduced_shape((8, 7, 7), 2, (4, 3)) == [2, 4, 3]
    for time in (3, 16):
        with pytest.raises(ReskdError, match=rf"targets\.features\.time {time}: .* 8 times; give a divisor"):
            reduced_shape((8, 7, 7), time, None)
    for grid in ((8, 7), (7, 9)):
        with pytest.raises(ReskdError, match=r"a map of 7 positions a side can't be reduced to [89]: .*not be finer"):
            reduced_shape((8, 7, 7), None, grid)
