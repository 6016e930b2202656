"""Losses on reduced maps: the same gradient from a grid, the same weight in every encoding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_losses import bilinear, draw, softmax, tensor
from test_student import MODEL

from cache.codecs import scale_and_offset, to_codes
from cache.identity import Identity
from cache.manifest import FORMAT, Manifest
from cache.reduction import reduce_maps
from cache.view import ViewPolicy
from stages.distill.config import LossConfig
from stages.distill.losses import feature_mse
from stages.distill.student import StudentOutput, build_student
from stages.distill.targets import loss_terms, target_decoder
from stages.models.architectures import build_model
from stages.stream.batch import Batch
from stages.teacher.config import FeaturesConfig
from stages.teacher.constants import root_arrays
from stages.teacher.teacher import Teacher

B, T, SIDE, SMALL, WIDTH, CLASSES = 3, 2, 7, 4, 16, 5
MASK = torch.tensor([True, False, True])
TEACHER = np.maximum(draw(B, T, SIDE, SIDE, WIDTH, seed=1), 0).astype(np.float32)
MEAN = TEACHER.mean((0, 1, 2, 3))
CPU = torch.device("cpu")


def basis_of(dims: int) -> dict[str, np.ndarray]:
    basis = np.linalg.qr(draw(WIDTH, WIDTH, seed=2))[0][:, :dims].astype(np.float32)
    return {"basis": basis, "mean": MEAN}


def graded(student: np.ndarray, target: np.ndarray, whole=None) -> tuple[float, torch.Tensor]:
    """The loss and its gradient at the student's map, in float64."""
    student = tensor(student, grad=True)
    loss = feature_mse(student, tensor(target), MASK, whole)
    return loss.item(), torch.autograd.grad(loss, student)[0]


# ---- the grid ----

UP = bilinear(np.eye(SMALL)[None, None, :, None], SIDE, 1)[0, 0, :, 0]  # [7,4]
DOWN = np.linalg.pinv(UP)
REDUCED = np.einsum("gh,bthwd,kw->btgkd", DOWN, TEACHER.astype(np.float64), DOWN)


def on_grid(student) -> torch.Tensor:
    return feature_mse(student, tensor(REDUCED), MASK, (SIDE, SIDE, WIDTH))


def test_a_map_reduced_to_the_students_grid_gives_the_same_gradient_and_a_loss_less_by_a_constant():
    students = [draw(B, T, SMALL, SMALL, WIDTH, seed=seed) for seed in (3, 4)]
    whole = [graded(s, TEACHER) for s in students]
    small = [graded(s, REDUCED, (SIDE, SIDE, WIDTH)) for s in students]
    for (_, ours), (_, theirs) in zip(small, whole, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12) and theirs.abs().max() > 1e-3
    lost = [a - b for (a, _), (b, _) in zip(whole, small, strict=True)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-9) and lost[0] > 0.01
    hand = TEACHER - bilinear(REDUCED, SIDE, SIDE)  # what no student of that grid can reach
    assert lost[0] == pytest.approx(np.square(hand[MASK.numpy()]).mean(), rel=1e-9)


def test_its_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(on_grid, tensor(draw(B, T, SMALL, SMALL, WIDTH), grad=True), fast_mode=True)


def test_comparing_small_maps_without_interpolating_the_error_would_be_another_loss():
    student = draw(B, T, SMALL, SMALL, WIDTH, seed=3)
    whole, naive = graded(student, TEACHER)[1], graded(student, REDUCED)[1]
    assert torch.cosine_similarity(whole.flatten(), naive.flatten(), dim=0) < 0.97


def test_another_grids_gradient_would_be_off():
    student = draw(B, T, 5, 5, WIDTH, seed=3)
    whole, other = graded(student, TEACHER)[1], graded(student, REDUCED, (SIDE, SIDE, WIDTH))[1]
    assert torch.cosine_similarity(whole.flatten(), other.flatten(), dim=0) < 0.97


# ---- the basis and bytes, through all that training runs ----


def manifest_of(codec: str, grid=(T, SIDE, SIDE), width=WIDTH) -> Manifest:
    features = {"codec": codec, "grid": list(grid), "width": width, "map": [T, SIDE, SIDE, WIDTH], "sample": None}
    targets = {"logits": {"codec": "uint8", "width": CLASSES}, "features": features}
    return Manifest(Identity(FORMAT, {}, "pyav", ViewPolicy(num_frames=T), (), (), targets), views=1)


def encoded(codec: str, constants: dict, grid=(T, SIDE, SIDE)) -> tuple[np.ndarray, dict]:
    """As stored, and the constants with int8's ranges."""
    reduced = reduce_maps(TEACHER, {"grid": list(grid)}, constants)
    if codec == "float16":
        return reduced.astype(np.float16), constants
    flat = reduced.reshape(-1, reduced.shape[-1])
    constants = constants | scale_and_offset(flat.min(0), flat.max(0))
    return to_codes(reduced, constants), constants


def trained_on(codec: str, constants: dict, grid=(T, SIDE, SIDE), teacher_width=WIDTH) -> tuple[float, torch.Tensor]:
    """feature_mse of a student on an encoding, and its gradient at the student's own map."""
    stored, constants = encoded(codec, constants, grid)
    torch.manual_seed(0)
    student = build_student(build_model(MODEL), LossConfig(feature_mse=1), teacher_width, constants)
    own = torch.from_numpy(draw(B, T, SMALL, SMALL, WIDTH, seed=3).astype(np.float32)).requires_grad_()
    answer = StudentOutput(torch.zeros(B, CLASSES), own if student.projector is None else student.projector(own))
    decoder = target_decoder(manifest_of(codec, grid, stored.shape[-1]), constants, CPU)
    loss = loss_terms(answer, batch_of(stored), LossConfig(cross_entropy=0, feature_mse=1), decoder)["feature_mse"]
    return loss.item(), torch.autograd.grad(loss, own)[0]


def batch_of(stored: np.ndarray) -> Batch:
    clips, labels = torch.zeros(B, T, 3, 8, 8, dtype=torch.uint8), torch.zeros(B, dtype=torch.int64)
    index = torch.zeros(B, 3, dtype=torch.int64)
    return Batch(clips, labels, torch.zeros(B, CLASSES), MASK, index, features=torch.from_numpy(stored))


RAW = trained_on("float16", {})


@pytest.mark.parametrize(
    "codec, dims, rtol",
    [("float16", WIDTH, 2e-3), ("int8", None, 0.02), ("int8", WIDTH, 0.02)],
    ids=["full basis", "int8", "int8 in a full basis"],
)
def test_a_weight_means_the_same_in_every_encoding(codec, dims, rtol):
    loss, gradient = trained_on(codec, {} if dims is None else basis_of(dims))
    assert loss == pytest.approx(RAW[0], rel=rtol)
    assert (gradient - RAW[1]).norm() <= rtol * RAW[1].norm()


def test_a_full_rank_basis_changes_neither_loss_nor_gradient():
    constants = {name: values.astype(np.float64) for name, values in basis_of(WIDTH).items()}
    constants["basis"] = np.linalg.qr(constants["basis"])[0]  # orthonormal in float64
    student = draw(B, T, SMALL, SMALL, WIDTH, seed=3)
    loss, gradient = graded(student, TEACHER)

    def project(maps):
        return (maps - constants["mean"]) @ constants["basis"]

    in_basis, turned = graded(project(student), project(TEACHER.astype(np.float64)), (SIDE, SIDE, WIDTH))
    assert in_basis == pytest.approx(loss, rel=1e-12)
    assert torch.allclose(turned @ tensor(constants["basis"]).T, gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dims", [1, 5, 12])
@pytest.mark.parametrize("side", [SIDE, SMALL])
def test_the_loss_in_a_basis_is_its_definition(dims, side):
    """Summed over the teacher's positions and the basis, divided by T H W D, mean over the rows that have a target."""
    constants = basis_of(dims)
    loss, gradient = trained_on("float16", constants, (T, side, side))
    stored = encoded("float16", constants, (T, side, side))[0].astype(np.float64)
    student = draw(B, T, SMALL, SMALL, WIDTH, seed=3).astype(np.float32).astype(np.float64)
    error = bilinear(bilinear((student - MEAN) @ constants["basis"], side, side) - stored, SIDE, SIDE)
    by_hand = (np.square(error).sum((1, 2, 3, 4)) / (T * SIDE * SIDE * WIDTH))[MASK.numpy()].mean()
    assert loss == pytest.approx(by_hand, rel=1e-5)
    assert gradient.abs().amax((1, 2, 3, 4)).gt(0).tolist() == MASK.tolist()


def test_fewer_directions_never_raise_the_loss():
    losses = [trained_on("float16", basis_of(dims))[0] for dims in (1, 4, 8, 12, WIDTH)]
    assert losses == sorted(losses) and losses[0] < losses[-1] / 2


def test_a_student_of_the_teachers_width_has_the_basis_as_a_fixed_projector_another_trains_one():
    constants = basis_of(5)
    fixed = build_student(build_model(MODEL), LossConfig(feature_mse=1), WIDTH, constants).projector
    maps = draw(2, WIDTH).astype(np.float32)
    assert not any(p.requires_grad for p in fixed.parameters())
    assert np.allclose(fixed(torch.from_numpy(maps)).numpy(), (maps - MEAN) @ constants["basis"], atol=1e-5)
    trained = build_student(build_model(MODEL), LossConfig(feature_mse=1), 24, constants).projector
    assert (trained.in_features, trained.out_features) == (WIDTH, 5)
    assert all(p.requires_grad for p in trained.parameters())
    assert build_student(build_model(MODEL), LossConfig(logit_map_kl=1), WIDTH, constants).projector is None


# ---- the classifier in the basis ----


def roots(constants: dict) -> dict[str, np.ndarray]:
    """What stage one keeps at the root, of a teacher with this classifier."""
    fc = torch.nn.Linear(WIDTH, CLASSES)
    fc.weight.data, fc.bias.data = (tensor(draw(*s, seed=5), torch.float32) for s in ((CLASSES, WIDTH), (CLASSES,)))
    net = SimpleNamespace(head=SimpleNamespace(fc=fc, has_class_map=True))
    return root_arrays(Teacher(net, 32, torch.float32, 16, FeaturesConfig(), constants=constants))


@pytest.mark.parametrize("dims", [None, 3, WIDTH])
def test_the_classifier_takes_maps_as_they_are_stored(dims):
    constants = {} if dims is None else basis_of(dims)
    found = roots(constants)
    assert found["classifier"].shape == (dims or WIDTH, CLASSES) and found["classifier_bias"].shape == (CLASSES,)
    assert {name: found[name] for name in constants} == constants
    ours = reduce_maps(TEACHER, {"grid": [T, SIDE, SIDE]}, constants) @ found["classifier"] + found["classifier_bias"]
    weight, bias = draw(CLASSES, WIDTH, seed=5), draw(CLASSES, seed=5)
    kept = np.eye(WIDTH) if dims is None else constants["basis"] @ constants["basis"].T
    by_hand = ((TEACHER - MEAN) @ kept + MEAN) @ weight.T + bias
    assert np.allclose(ours, by_hand, atol=1e-4)


@pytest.mark.parametrize("codec, rtol", [("float16", 2e-3), ("int8", 0.05)])
def test_class_maps_from_a_full_rank_basis_teach_as_the_raw_map_does(codec, rtol):
    config, values = LossConfig(cross_entropy=0, logit_map_kl=1, temperature=2), []
    student = tensor(2 * draw(B, T, SMALL, SMALL, CLASSES, seed=6), torch.float32)
    for name, constants in (("float16", {}), (codec, basis_of(WIDTH))):
        stored, constants = encoded(name, constants)
        decoder = target_decoder(manifest_of(name), roots(constants), CPU)
        answer = StudentOutput(torch.zeros(B, CLASSES), torch.zeros(B, T, SMALL, SMALL, WIDTH), student)
        values.append(loss_terms(answer, batch_of(stored), config, decoder)["logit_map_kl"].item())
    raw = TEACHER @ draw(CLASSES, WIDTH, seed=5).T + draw(CLASSES, seed=5)
    p, q = softmax(raw / 2), softmax(bilinear(student.double().numpy(), SIDE, SIDE) / 2)
    by_hand = 4 * (p * np.log(p / q)).sum(-1)[MASK.numpy()].mean()
    assert values[0] == pytest.approx(by_hand, rel=2e-3)
    assert values[1] == pytest.approx(values[0], rel=rtol)
