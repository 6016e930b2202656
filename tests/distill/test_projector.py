"""The projector between the student's channels and the targets'."""

import numpy as np
import pytest
import torch

from cache.errors import ReskdError
from stages.distill.projector import ProjectorEnsemble, build_projector

WIDTH = 6


def constants(dims: int) -> dict:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:, :dims].astype(np.float32)
    return {"basis": basis, "mean": rng.normal(size=WIDTH).astype(np.float32)}


MAPS = torch.rand(3, 2, 4, 4, WIDTH, generator=torch.Generator().manual_seed(0))  # after a ReLU


def trained(module) -> set[bool]:
    return {parameter.requires_grad for parameter in module.parameters()}


@pytest.mark.parametrize("given", [{}, constants(4)], ids=["channels", "basis"])
def test_at_equal_width_a_linear_projector_begins_as_the_identity_or_the_basis(given):
    projector = build_projector("linear", WIDTH, WIDTH, given)
    expected = (MAPS.numpy() - given["mean"]) @ given["basis"] if given else MAPS.numpy()
    assert np.allclose(projector(MAPS).detach(), expected, atol=1e-5)
    assert trained(projector) == {True}


@pytest.mark.parametrize("kind", ["auto", "none"])
def test_at_equal_width_nothing_is_trained_unless_it_is_asked_for(kind):
    assert build_projector(kind, WIDTH, WIDTH, {}) is None
    fixed = build_projector(kind, WIDTH, WIDTH, constants(4))
    assert trained(fixed) == {False}
    given = constants(4)
    assert np.allclose(fixed(MAPS), (MAPS.numpy() - given["mean"]) @ given["basis"], atol=1e-5)


@pytest.mark.parametrize("given, out", [({}, 9), (constants(4), 4)], ids=["channels", "basis"])
@pytest.mark.parametrize("kind", ["auto", "linear", "ensemble"])
def test_at_other_widths_a_projector_leads_to_the_channels_of_the_targets(kind, given, out):
    projector = build_projector(kind, 8, 9 if not given else WIDTH, given)
    assert (projector.in_features, projector.out_features) == (8, out)
    assert projector(torch.rand(2, 1, 3, 3, 8)).shape == (2, 1, 3, 3, out)


def test_none_at_other_widths_is_refused():
    with pytest.raises(ReskdError, match=r"losses.projector: none: .* 8 channels and the teacher's 6.*linear"):
        build_projector("none", 8, WIDTH, {})


def test_an_ensemble_is_the_mean_of_three_maps_with_a_relu_that_begin_near_the_identity_and_apart():
    torch.manual_seed(0)
    ensemble = ProjectorEnsemble(WIDTH, WIDTH, {})
    parts = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in ensemble.members]
    by_hand = np.mean([np.maximum(MAPS.numpy() @ w.T + b, 0) for w, b in parts], axis=0)
    assert np.allclose(ensemble(MAPS).detach(), by_hand, atol=1e-6)
    assert np.allclose(np.mean([w for w, _ in parts], axis=0), np.eye(WIDTH), atol=1e-6)
    assert all(np.abs(parts[0][0] - w).max() > 0.05 for w, _ in parts[1:])


def test_an_ensemble_is_projected_onto_the_basis_and_only_its_maps_are_trained():
    torch.manual_seed(0)
    given = constants(4)
    ensemble = ProjectorEnsemble(WIDTH, WIDTH, given)
    plain = ProjectorEnsemble(WIDTH, WIDTH, {})
    plain.members.load_state_dict(ensemble.members.state_dict())
    expected = (plain(MAPS).detach().numpy() - given["mean"]) @ given["basis"]
    assert np.allclose(ensemble(MAPS).detach(), expected, atol=1e-5)
    assert trained(ensemble.to_basis) == {False} and trained(ensemble.members) == {True}
