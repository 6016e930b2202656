"""A loss whose weight changes: each value stands beside the weight of its own step."""

import numpy as np

from stages.report.run_sections import _weighted, _weights_text
from stages.report.runs import _terms


def rows(weights, values):
    return [{"step": i, "terms": {"feature_mse": (w, v)}} for i, (w, v) in enumerate(zip(weights, values, strict=True))]


def test_a_fading_weight_is_shown_with_both_ends_and_multiplied_point_by_point():
    term = _terms(rows([5.0, 2.5, 0.08], [1.0, 0.8, 0.5]))["feature_mse"]
    assert np.allclose(_weighted(term).y, [5.0, 2.0, 0.04])
    assert _weights_text(term) == "5 → 0.08"


def test_a_number_is_shown_as_it_is():
    term = _terms(rows([2.0, 2.0], [1.0, 0.5]))["feature_mse"]
    assert np.allclose(_weighted(term).y, [2.0, 1.0]) and _weights_text(term) == "2"
