"""What storing costs the targets, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.codecs import CODECS, codec_of, is_finite
from cache.errors import ReskdError

LOGITS, FEATURES = CODECS["logits"], CODECS["features"]

INT8 = {"scale": np.full(4, 0.5, np.float32), "offset": np.zeros(4, np.float32)}
EPS = float(np.finfo(np.float32).eps)


def logits(limit: float):
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)
    return hnp.arrays(np.float32, shapes, elements=st.floats(-limit, limit, width=32))


@given(st.one_of(logits(30.0), logits(2.0**100), logits(2.0**-130)))
@settings(max_examples=300, deadline=None)
def test_uint8_logits_are_off_by_half_a_step_at_most(values):
    codec = LOGITS["uint8"]
    stored = codec.encode(values, {})
    assert {name: a.dtype for name, a in stored.items()} == {n: np.dtype(s.dtype) for n, s in codec.arrays.items()}
    assert (stored["scale"] > 0).all() and np.isfinite(stored["scale"]).all()
    back = codec.decode(stored)
    assert back.dtype == np.float32 and back.shape == values.shape
    error = np.abs(back.astype(np.float64) - values)
    rounding = 2 * EPS * np.abs(values).max(axis=1).astype(np.float64)
    assert (error <= stored["scale"].astype(np.float64)[:, None] * (0.5 + 1e-4) + rounding[:, None]).all()
    spread = values.max(axis=1).astype(np.float64) - values.min(axis=1)
    assert (stored["scale"] <= np.maximum(spread / 255 * (1 + 1e-6), 2e-38)).all()


def test_uint8_keeps_constant_rows_and_the_lowest_logit_exactly():
    values = np.array([[3.25, 3.25, 3.25], [-7.5, 0.0, 2.0]], dtype=np.float32)
    back = LOGITS["uint8"].decode(LOGITS["uint8"].encode(values, {}))
    assert (back[0] == 3.25).all() and back[1, 0] == -7.5 and abs(back[1, 2] - 2.0) < 1e-5


def test_uint8_teachers_answers_move_little():
    """DESIGN §3's figure: at K = 400 a soft teacher's probabilities move by 0.005 in total variation at T = 1."""
    values = np.random.default_rng(0).normal(0, 3, (200, 400)).astype(np.float32)
    back = LOGITS["uint8"].decode(LOGITS["uint8"].encode(values, {}))
    p, q = (np.exp(x - x.max(1, keepdims=True)) for x in (values.astype(float), back.astype(float)))
    distance = np.abs(p / p.sum(1, keepdims=True) - q / q.sum(1, keepdims=True)).sum(1).mean() / 2
    assert distance < 0.01


@given(logits(60000.0))
@settings(max_examples=100, deadline=None)
def test_float16_is_off_by_its_rounding(values):
    for codec, name in ((LOGITS["float16"], "logits"), (FEATURES["float16"], "features")):
        stored = codec.encode(values, {})
        assert list(stored) == [name] and stored[name].dtype == np.float16
        back = codec.decode(stored).astype(np.float64)
        assert (np.abs(back - values) <= np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)).all()
    assert LOGITS["float16"].decode({"logits": np.ones((1, 2), np.float16)}).dtype == np.float32


@pytest.mark.parametrize("codec", [*LOGITS.values(), *FEATURES.values()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(codec, bad):
    values = np.zeros((3, 4), dtype=np.float32)
    values[1, 2] = bad
    with pytest.raises(ReskdError, match="NaN or infinity"):
        codec.encode(values, INT8)


def test_what_overflows_is_refused():
    with pytest.raises(ReskdError, match=r"features: 70000 overflows float16"):
        FEATURES["float16"].encode(np.array([[70000.0]], dtype=np.float32), {})
    with pytest.raises(ReskdError, match="overflows float32"):
        LOGITS["uint8"].encode(np.array([[-3e38, 3e38]], dtype=np.float32), {})
    with pytest.raises(ReskdError, match="overflows float32"):
        LOGITS["uint8"].encode(np.array([[1e39, 1e39]]), {})


def test_no_rows_are_encoded_too():
    for codec in (*LOGITS.values(), *FEATURES.values()):
        assert all(len(a) == 0 for a in codec.encode(np.zeros((0, 4), np.float32), INT8).values())


def test_int8_codes_are_their_own_decoding_and_the_sentinel_is_not_finite():
    codec = FEATURES["int8"]
    stored = codec.encode(np.array([[0.0, 0.5, -1.0, 1e9]], np.float32), INT8)["features"]
    assert stored.dtype == np.int8 and stored.tolist() == [[0, 1, -2, 127]]
    assert codec.decode({"features": stored}) is stored and is_finite(stored)
    for name, end in (("int4", 7), ("int3", 3)):
        assert FEATURES[name].encode(np.array([[0.5, 1.0, -99, 99]], np.float32), INT8)["features"].tolist() == [
            [1, 2, -end, end]
        ]
    assert not is_finite(np.full((1, 4), codec.arrays["features"].fill, np.int8))


@given(hnp.arrays(np.float16, hnp.array_shapes(max_dims=2), elements=st.floats(width=16)))
@settings(deadline=None)
def test_finiteness_by_bits_is_numpys(values):
    assert is_finite(values) == np.isfinite(values).all()
    assert is_finite(values.T) == np.isfinite(values).all()


def test_unknown_codecs_are_refused_with_the_known_ones():
    with pytest.raises(
        ReskdError, match=r"'features' can't be stored as 'uint8'.*logits: uint8, float16, features: float16, int8"
    ):
        codec_of("features", "uint8")
    with pytest.raises(ReskdError, match="'attention'"):
        codec_of("attention", "float16")
