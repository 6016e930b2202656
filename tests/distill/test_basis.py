"""The basis and the ranges that are estimated on a sample, and the error that is measured beside it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.codecs import CODECS, from_stored, to_codes
from cache.errors import ReskdError
from cache.reduction import reduce_maps
from stages.teacher import reduction
from stages.teacher.reduction import Sample, encoding_error, estimate_constants, gather_sample

LEVELS = {name: codec.levels for name, codec in CODECS["features"].items() if codec.levels}

CLIPS, T, SIDE, WIDTH = 20, 2, 3, 8
HELD = np.arange(CLIPS) % 5 == 4


def maps_of(seed: int = 0, clips: int = CLIPS) -> np.ndarray:
    """Correlated channels of very different energy, away from zero."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(clips, T, SIDE, SIDE, WIDTH)) * 2.0 ** -np.arange(WIDTH)
    turned = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return (mixed @ turned + 3 * rng.random(WIDTH)).astype(np.float32)


MAPS = maps_of()
FITTED = MAPS[~HELD].reshape(-1, WIDTH).astype(np.float64)


def sampled(maps=MAPS, held=HELD, grid=(T, SIDE, SIDE), ends=(CLIPS,), moments=True) -> Sample:
    """In batches that end at `ends`."""
    starts = (0, *ends[:-1])
    batches = [(torch.from_numpy(maps[a:b]), held[a:b]) for a, b in zip(starts, ends, strict=True)]
    return gather_sample(batches, grid, moments)


def projector(constants) -> np.ndarray:
    return constants["basis"].astype(np.float64) @ constants["basis"].T


@pytest.mark.parametrize("dims", [1, 3, WIDTH])
def test_the_basis_is_the_pca_of_what_was_fitted(dims):
    constants = estimate_constants(sampled(), "float16", dims, None)
    assert constants.keys() == {"basis", "mean"} and all(a.dtype == np.float32 for a in constants.values())
    assert constants["basis"].shape == (WIDTH, dims)
    assert np.allclose(constants["mean"], FITTED.mean(0), atol=1e-5)
    assert np.allclose(constants["basis"].T @ constants["basis"], np.eye(dims), atol=1e-5)
    directions = np.linalg.svd(FITTED - FITTED.mean(0), full_matrices=False)[2][:dims]  # the strongest first
    assert np.allclose(np.abs(directions @ constants["basis"]), np.eye(dims), atol=2e-3)
    largest = constants["basis"][np.abs(constants["basis"]).argmax(0), range(dims)]
    assert (largest > 0).all()  # signs are fixed


@given(st.floats(0.05, 0.999999))
@settings(max_examples=30)
def test_energy_takes_the_fewest_directions_that_hold_it(energy):
    values = np.linalg.eigvalsh(np.cov(FITTED.T, bias=True))[::-1]
    share = np.cumsum(values) / values.sum()
    dims = estimate_constants(sampled(), "float16", None, energy)["basis"].shape[1]
    assert share[dims - 1] >= energy * (1 - 1e-6)
    assert dims == 1 or share[dims - 2] < energy * (1 + 1e-6)


def test_maps_that_never_vary_have_a_basis_too():
    constants = estimate_constants(sampled(np.ones_like(MAPS)), "int8", None, 0.9)
    assert constants["basis"].shape == (WIDTH, 1) and all(np.isfinite(a).all() for a in constants.values())


def test_more_directions_than_channels_are_refused():
    with pytest.raises(ReskdError, match=rf"dims {WIDTH + 1}: the teacher's map has {WIDTH} channels"):
        estimate_constants(sampled(), "float16", WIDTH + 1, None)


def test_batches_in_another_split_give_the_same_basis():
    whole = estimate_constants(sampled(), "int8", 4, None)
    for ends in ((1, 3, 10, CLIPS), (7, CLIPS), tuple(range(1, CLIPS + 1))):
        other = estimate_constants(sampled(ends=ends), "int8", 4, None)
        for name, values in whole.items():
            assert np.allclose(values, other[name], rtol=1e-3, atol=2e-4), name


def test_held_out_clips_are_not_fitted_on():
    spoilt = MAPS.copy()
    spoilt[HELD] = 1e4 * maps_of(1)[HELD]
    for codec, dims in (("float16", 3), ("int8", 3), ("int8", None)):
        ours, theirs = (
            estimate_constants(sampled(m, moments=dims is not None), codec, dims, None) for m in (MAPS, spoilt)
        )
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert encoding_error(sampled(spoilt), ours)["rounding"] > 0.5  # but they are what the error is measured on


def test_clips_that_give_no_maps_are_left_out_and_none_at_all_is_an_error():
    empty = (torch.zeros(0, T, SIDE, SIDE, WIDTH), np.zeros(0, bool))
    batches = [empty, (torch.from_numpy(MAPS), HELD), empty]
    ours, theirs = (
        estimate_constants(s, "int8", 2, None) for s in (gather_sample(batches, (T, SIDE, SIDE), True), sampled())
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ReskdError, match=r"targets\.features: no clip of the sample gives a map.*finite.*`sample`"):
        gather_sample([empty], (T, SIDE, SIDE), True)


def test_the_error_is_that_of_the_clips_that_were_held_out():
    sample = sampled(ends=(9, CLIPS))
    held = MAPS[HELD].reshape(-1, WIDTH).astype(np.float64)
    energy = np.square(held - held.mean(0)).sum()
    for dims in (1, 3, WIDTH):
        constants = estimate_constants(sample, "int8", dims, None)
        error, centred = encoding_error(sample, constants), held - constants["mean"]
        residual = centred - centred @ projector(constants)
        assert error["channels"] == pytest.approx(1 - np.square(residual).sum() / energy, abs=1e-5)
        stored = centred @ constants["basis"]
        back = from_stored(to_codes(stored, constants), constants)
        kept = np.square(stored - stored.mean(0)).sum()
        assert error["rounding"] == pytest.approx(np.square(back - stored).sum() / kept, rel=1e-3, abs=1e-9)
        assert error["grid"] == pytest.approx(1.0)
        assert (error["held_out"], error["fitted"]) == (HELD.sum(), (~HELD).sum() * T * SIDE * SIDE)
    raw = encoding_error(sample, {})
    assert raw["channels"] == 1 and 0 < raw["rounding"] < 1e-5  # float16's


def test_what_a_grid_and_fewer_times_keep_is_measured():
    grid = (1, 2, 2)
    sample = sampled(grid=grid)
    held = MAPS[HELD].astype(np.float64).mean(1, keepdims=True)  # a loss on one time sees no other
    small = torch.from_numpy(reduce_maps(held, {"grid": list(grid)}, {}).astype(np.float64))
    images = small.flatten(0, 1).permute(0, 3, 1, 2)
    back = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear").permute(0, 2, 3, 1).numpy()
    lost = np.square(held[:, 0] - back).sum() / np.square(held - held.mean((0, 1, 2, 3))).sum()
    assert encoding_error(sample, {})["grid"] == pytest.approx(1 - lost, abs=1e-5) and 0.1 < lost < 0.9
    constants = estimate_constants(sample, "float16", 3, None)
    fitted = reduce_maps(MAPS[~HELD], {"grid": list(grid)}, {}).reshape(-1, WIDTH).astype(np.float64)
    assert np.allclose(constants["mean"], fitted.mean(0), atol=1e-5)  # the basis is of maps on the stored grid
    directions = np.linalg.eigh(np.cov(fitted.T, bias=True))[1][:, ::-1][:, :3]
    assert np.allclose(projector(constants), directions @ directions.T, atol=1e-3)


def test_ranges_span_what_was_fitted():
    raw = estimate_constants(sampled(moments=False), "int8", None, None)
    assert raw.keys() == {"scale", "offset"}
    ends = [from_stored(np.full((1, WIDTH), end, np.int8), raw)[0] for end in (-LEVELS["int8"], LEVELS["int8"])]
    assert np.allclose(ends, [FITTED.min(0), FITTED.max(0)], rtol=1e-5, atol=1e-5)
    turned = estimate_constants(sampled(), "int8", 3, None)
    values = (FITTED - turned["mean"]) @ turned["basis"]
    low, high = (from_stored(np.full((1, 3), end, np.int8), turned)[0] for end in (-LEVELS["int8"], LEVELS["int8"]))
    room = 0.1 * np.ptp(values, axis=0)  # for maps that weren't kept
    assert np.allclose(low, values.min(0) - room, atol=1e-3) and np.allclose(high, values.max(0) + room, atol=1e-3)


def test_as_many_maps_are_kept_as_fit(monkeypatch):
    monkeypatch.setattr(reduction, "KEPT", 3 * MAPS[0].nbytes)
    sample = sampled(ends=(9, CLIPS))
    assert len(sample.fitted) == len(sample.held_out) == 3
    assert np.allclose(
        estimate_constants(sample, "float16", 3, None)["mean"], FITTED.mean(0), atol=1e-5
    )  # of all all the same
    monkeypatch.setattr(reduction, "KEPT", 1)
    sample = sampled()
    assert len(sample.fitted) == len(sample.held_out) == 1  # the first in any case
