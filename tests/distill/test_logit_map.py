"""The KL of class maps: its definition, upstream's expression, and the shortcut of classifying before upsampling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_losses import bilinear, draw, softmax, tensor

from cache.errors import ReskdError
from stages.distill.losses import logit_map_kl
from stages.distill.student import classify

MASK = np.array([True, False, True])
TEACHER = 3 * draw(3, 2, 5, 7, 4, seed=1)  # [B, T', H, W, K]
GRIDS = [pytest.param((3, 4), id="up"), pytest.param((5, 7), id="same"), pytest.param((8, 9), id="down")]


def kl(student, teacher=TEACHER):
    return logit_map_kl(student, tensor(teacher, student.dtype), 2.0, torch.tensor(MASK))


def kl_by_hand(student):
    p, q = softmax(TEACHER[MASK] / 2), softmax(bilinear(student, 5, 7)[MASK] / 2)
    return 4 * (p * np.log(p / q)).sum(-1).mean()


@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_its_definition(grid):
    student = 2 * draw(3, 2, *grid, 4)
    assert kl(tensor(student)).item() == pytest.approx(kl_by_hand(student), rel=1e-7)
    assert kl(tensor(student, torch.float32)).item() == pytest.approx(kl_by_hand(student), rel=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_are_those_of_finite_differences_and_nil_on_masked_rows(grid):
    student = tensor(draw(3, 2, *grid, 4), grad=True)
    assert torch.autograd.gradcheck(kl, student, fast_mode=True)
    kl(student).backward()
    assert torch.equal(student.grad.flatten(1).abs().amax(1) > 0, torch.tensor(MASK))


def test_half_precision_under_autocast_is_computed_in_float32():
    half = tensor(draw(3, 2, 3, 4, 4), torch.bfloat16, grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = kl(half)
    assert value.dtype == torch.float32
    rounded = tensor(TEACHER, torch.bfloat16).float().numpy()
    assert value.item() == pytest.approx(kl(half.detach().float(), rounded).item(), rel=1e-6)


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, 1e30])
def test_what_stands_in_a_masked_row_of_the_targets_does_not_matter(rubbish):
    student, spoilt = tensor(draw(3, 2, 3, 4, 4), torch.float32, grad=True), TEACHER.copy()
    spoilt[1] = rubbish
    values = [kl(student), kl(student, spoilt)]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(value, student)[0] for value in values))


def test_no_rows_give_zero_with_a_gradient_of_zero():
    student = tensor(draw(3, 2, 3, 4, 4), grad=True)
    value = logit_map_kl(student, torch.full((3, 2, 5, 7, 4), torch.nan), 2.0, torch.zeros(3, dtype=torch.bool))
    assert value.item() == 0 and torch.equal(torch.autograd.grad(value, student)[0], torch.zeros_like(student))


@pytest.mark.parametrize("grid", GRIDS)
def test_classifying_and_interpolating_commute(grid):
    """Weights of an interpolation sum to 1, so the bias passes through: the low-resolution map is enough."""
    features, weight, bias = tensor(draw(2, 3, *grid, 6)), tensor(draw(4, 6, seed=2)), tensor(draw(4, seed=3))
    first = torch.from_numpy(bilinear(classify(features, weight, bias).numpy(), 5, 7))
    last = classify(torch.from_numpy(bilinear(features.numpy(), 5, 7)), weight, bias)
    assert torch.allclose(first, last, rtol=1e-12, atol=1e-12)


def test_a_class_map_is_a_linear_layer_at_each_position_in_float32():
    features, weight, bias = tensor(draw(2, 3, 4, 5, 6), torch.bfloat16), draw(4, 6, seed=2), draw(4, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        ours = classify(features, tensor(weight, torch.float32), tensor(bias, torch.float32))
    assert ours.dtype == torch.float32
    assert np.allclose(ours.numpy(), features.double().numpy() @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:reduction")
def test_the_seeds_weight_of_200_is_a_half():
    """Upstream, for a Swin at 112 px: both classifiers on [rows, D] of the upsampled 4x4 and the 7x7 map, T = 2,
    KLDivLoss's "mean" over rows and 400 classes, times 200 and T^2."""
    classes, width = 400, 8
    s = torch.arange(2 * 3 * 16 * width, dtype=torch.float64).sin().view(2, width, 3, 4, 4)  # [N, C, T, h, w]
    t = torch.arange(2 * 3 * 49 * width, dtype=torch.float64).mul(0.7).cos().view(2, width, 3, 7, 7)
    fc, fc_t = (torch.nn.Linear(width, classes).double() for _ in range(2))
    for i, values in enumerate((fc.weight, fc.bias, fc_t.weight, fc_t.bias)):
        values.data = torch.arange(values.numel(), dtype=torch.float64).mul(0.9 + 0.1 * i).sin().view(values.shape)
    up = F.interpolate(s.reshape(-1, 3, 4, 4), size=(7, 7), mode="bilinear").reshape(t.shape)
    rows, rows_t = (x.permute(0, 2, 3, 4, 1).reshape(-1, width) for x in (up, t))
    mean = torch.nn.KLDivLoss(reduction="mean")(F.log_softmax(fc(rows) / 2, 1), F.softmax(fc_t(rows_t) / 2, 1))
    seed = 200 * 2 * 2 * mean
    maps = [classify(x.permute(0, 2, 3, 4, 1), f.weight, f.bias) for x, f in ((s, fc), (t, fc_t))]
    mine = 0.5 * logit_map_kl(*maps, 2.0, torch.ones(2, dtype=torch.bool))
    assert mine.item() == pytest.approx(seed.item(), rel=1e-12)
    assert mine.item() == pytest.approx(GOLDEN, rel=1e-9)


GOLDEN = 0.3702292193648872


def test_maps_that_do_not_fit_are_refused_with_both_shapes():
    shape = (2, 2, 4, 4, 6)
    with pytest.raises(ReskdError, match=rf"\[{', '.join(map(str, shape[1:]))}\].*\[2, 7, 7, 8\].*classes"):
        logit_map_kl(torch.zeros(shape), torch.zeros(2, 2, 7, 7, 8), 1.0, torch.ones(2, dtype=torch.bool))
