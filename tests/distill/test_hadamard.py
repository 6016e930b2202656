"""The turn of a basis: a matrix for most widths, the same span, one variance for all coordinates."""

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cache.codecs import from_stored, to_codes
from cache.errors import ReskdError
from stages.config.file import load_config
from stages.teacher.config import FeaturesConfig
from stages.teacher.hadamard import hadamard, has_hadamard
from stages.teacher.reduction import Sample, estimate_constants


@given(st.integers(1, 300))
def test_a_matrix_of_signs_with_orthogonal_rows_or_a_refusal_that_names_widths_which_have_one(width):
    if has_hadamard(width):
        matrix = hadamard(width)
        assert set(np.unique(matrix)) <= {-1.0, 1.0}
        assert np.array_equal(matrix @ matrix.T, width * np.eye(width))
    else:
        with pytest.raises(ReskdError, match=rf"matrix of {width} channels") as error:
            hadamard(width)
        below, above = (int(w) for w in str(error.value).split("dims to ")[1].split(",")[0].split(" or "))
        assert below < width < above and has_hadamard(below) and has_hadamard(above)


@pytest.mark.parametrize("width", [12, 20, 80, 160, 256, 320, 384, 768, 1280, 2048])
def test_the_widths_of_networks_have_one(width):
    assert has_hadamard(width)


def long_tailed() -> np.ndarray:
    """Maps whose first direction has most of the variance."""
    rng = np.random.default_rng(0)
    return (rng.laplace(size=(40, 1, 4, 4, 16)) * 0.6 ** np.arange(16)).astype(np.float32)


def estimated(maps: np.ndarray, codec: str, rotate: str | None) -> dict:
    sample = Sample((1, 4, 4), moments=True)
    sample.add(torch.from_numpy(maps), np.zeros(len(maps), bool))
    return estimate_constants(sample, codec, 8, None, rotate)


def test_a_turn_keeps_the_span_and_gives_all_coordinates_one_variance_and_int4_rounds_less():
    maps = long_tailed()
    plain, turned = (estimated(maps, "int4", rotate) for rotate in (None, "hadamard"))
    assert np.allclose(turned["basis"].T @ turned["basis"], np.eye(8), atol=1e-5)
    assert np.allclose(plain["basis"] @ plain["basis"].T, turned["basis"] @ turned["basis"].T, atol=1e-5)
    coordinates = {name: (maps.reshape(-1, 16) - c["mean"]) @ c["basis"] for name, c in (("p", plain), ("t", turned))}
    assert coordinates["p"].var(0).max() > 100 * coordinates["p"].var(0).min()
    assert np.allclose(coordinates["t"].var(0), coordinates["p"].var(0).mean(), rtol=1e-3)
    errors = [
        np.square(from_stored(to_codes(coordinates[name], c, "int4"), c) - coordinates[name]).mean()
        for name, c in (("p", plain), ("t", turned))
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    "features, message",
    [
        ("{codec: int4, dims: 28, rotate: hadamard}", r"matrix of 28 channels.*dims to 24 or 32"),
        ("{codec: int4, energy: 0.9, rotate: hadamard}", "whose width is known: give dims"),
        ("{codec: int4, rotate: hadamard}", "give dims, or leave rotate out"),
        ("{codec: int4, dims: 8, rotate: dct}", "rotate: .*hadamard"),
    ],
)
def test_turns_that_cannot_be_had_are_refused(features, message):
    changes = [f"{key}={value}" for key, value in yaml.safe_load(features).items()]
    with pytest.raises(ReskdError, match=message):
        load_config(FeaturesConfig, None, changes)
