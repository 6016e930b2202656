"""Weights over time: the formula, and what a config may say."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cache.errors import ReskdError
from stages.config.file import load_config, save_config
from stages.distill.config import LossConfig
from stages.distill.weights import LossWeight, WeightOverTime, weight_at

numbers = st.floats(0, 100)
parts = st.floats(0, 1)
curves = st.builds(
    lambda ends, shape, until: WeightOverTime(start=ends[0], end=ends[1], shape=shape, until=until),
    st.tuples(numbers, numbers).filter(lambda ends: ends[0] != ends[1]),
    st.sampled_from(["cosine", "linear"]),
    st.floats(0.01, 1),
)


@given(curves, parts, parts)
def test_a_weight_goes_from_its_start_to_its_end_and_stays_there(curve, one, other):
    low, high = sorted((one, other))
    assert weight_at(curve, 0) == curve.start
    assert weight_at(curve, curve.until) == pytest.approx(curve.end, abs=1e-9)
    assert weight_at(curve, max(high, curve.until)) == pytest.approx(curve.end, abs=1e-9)
    falls = curve.end < curve.start
    assert (weight_at(curve, high) <= weight_at(curve, low) + 1e-9) if falls else (
        weight_at(curve, high) >= weight_at(curve, low) - 1e-9)  # fmt: skip


@given(numbers, parts)
def test_a_number_stays(number, part):
    assert weight_at(TypeAdapter(LossWeight).validate_python(number), part) == number


def test_golden_values():
    cosine = WeightOverTime(start=5, end=1, until=0.8)
    assert [weight_at(cosine, part) for part in (0, 0.2, 0.4, 0.8, 1)] == pytest.approx(
        [5, 3 + math.sqrt(2), 3, 1, 1], abs=1e-12
    )
    line = WeightOverTime(start=0, end=2, shape="linear", until=0.5)
    assert [weight_at(line, part) for part in (0, 0.25, 0.5, 0.9)] == [0, 1, 2, 2]


def test_a_config_keeps_numbers_and_curves(tmp_path):
    config = load_config(LossConfig, None, ["feature_mse={start: 5, end: 0}", "logit_kl=2", "temperature=4"])
    assert config.weights() == {"cross_entropy": 1.0, "logit_kl": 2.0, "feature_mse": 5.0}
    assert config.weights(1.0) == {"cross_entropy": 1.0, "logit_kl": 2.0, "feature_mse": 0.0}  # still in the sum
    save_config(config, tmp_path / "c.yaml")
    assert load_config(LossConfig, tmp_path / "c.yaml") == config
    rising = load_config(LossConfig, None, ["cross_entropy=0", "dist={start: 0, end: 1}"])
    assert rising.weights(0) == {"dist": 0.0}


@pytest.mark.parametrize(
    "change, message",
    [
        ("feature_mse=-1", "feature_mse: Input should be greater than or equal to 0"),
        ("feature_mse=many", "feature_mse: Input should be a valid number"),
        ("feature_mse={start: 1}", "feature_mse.end: missing"),
        ("feature_mse={start: 1, end: 0, shap: linear}", r"feature_mse.shap: unknown key; did you mean 'shape'"),
        ("feature_mse={start: 1, end: 0, shape: step}", "feature_mse.shape: .*'cosine' or 'linear'.*step"),
        ("feature_mse={start: 1, end: 0, until: 0}", "feature_mse.until: Input should be greater than 0"),
        ("feature_mse={start: 1, end: 1}", "start and end are both 1.0: give the number alone"),
        ("feature_mse={start: .nan, end: 1}", "feature_mse.start: "),
        ("projector=linear", "no loss reads projected features: give one of feature_mse, feature_nmse, feature_cosine"),
        ("cross_entropy=0", "every weight is 0"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ReskdError, match=message):
        load_config(LossConfig, None, [change])
