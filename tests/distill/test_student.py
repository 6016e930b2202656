"""What is trained beside the model: the projector, and the class map."""

import numpy as np
import pytest
import torch
from test_losses import bilinear

from cache.errors import ReskdError
from cache.identity import Identity
from cache.manifest import FORMAT, Manifest
from cache.view import ViewPolicy
from stages.distill.check_targets import check_targets
from stages.distill.config import LossConfig
from stages.distill.student import build_student
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import ModelOutput
from stages.student.config import OptimConfig
from stages.student.optim import param_groups

MODEL = ModelConfig(
    backbone="resnet18",
    args={"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8},
    num_classes=5,
    num_frames=2,
)


@pytest.fixture(scope="module")
def clips():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 2, 3, 24, 24), np.uint8))


def student_of(teacher_width, **weights):
    torch.manual_seed(0)
    return build_student(build_model(MODEL), LossConfig(**weights), teacher_width)


@pytest.mark.parametrize(
    "width, weights, adapted",
    [
        (24, {"feature_mse": 1}, True),
        (16, {"feature_mse": 1}, False),  # as wide as the teacher
        (24, {"logit_map_kl": 1}, False),  # classes are compared, not channels
        (24, {"logit_kl": 1}, False),
        (None, {}, False),
    ],
)
def test_there_is_a_projector_where_a_loss_compares_maps_of_other_widths(width, weights, adapted):
    assert (student_of(width, **weights).projector is not None) == adapted


def test_the_projector_is_a_linear_map_at_each_position_and_the_model_answers_as_alone(clips):
    student = student_of(24, feature_mse=1).eval()
    answer, alone = student(clips), student.model(clips)
    weight, bias = (p.detach().numpy() for p in student.projector.parameters())
    assert torch.equal(answer.logits, alone.logits) and answer.class_map is None
    assert np.allclose(answer.features.detach(), alone.features.detach().numpy() @ weight.T + bias, atol=1e-5)
    first = bilinear(answer.features.detach().numpy(), 5, 5)  # it commutes with the loss's interpolation
    assert np.allclose(first, bilinear(alone.features.detach().numpy(), 5, 5) @ weight.T + bias, atol=1e-5)


def test_the_mean_of_the_class_map_is_the_logits_without_dropout(clips):
    student = student_of(24, logit_map_kl=1)
    answer = student.eval()(clips)
    assert answer.class_map.shape == (3, 2, 3, 3, 5)
    assert torch.allclose(answer.class_map.mean((1, 2, 3)), answer.logits, atol=1e-6)
    trained = student.train()(clips)  # dropout is on, but for the class map
    assert not torch.allclose(trained.class_map.mean((1, 2, 3)), trained.logits, atol=1e-6)


def test_gradients_reach_the_classifier_and_the_projector_by_the_maps_alone(clips):
    student = student_of(24, feature_mse=1, logit_map_kl=1)
    answer = student(clips)
    (answer.features.square().mean() + answer.class_map.square().mean()).backward()
    for layer in (student.projector, student.model.head.fc, student.model.backbone.conv1):
        assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("groups", ["matrices", "all", "tsm", "swin", "swin_upstream"])
def test_the_projector_is_optimised_at_the_full_rate(groups):
    student = student_of(24, feature_mse=1)
    found = param_groups(student, OptimConfig(groups=groups), lr=1.0)
    (group,) = [g for g in found if any(p is student.projector.weight for p in g["params"])]
    assert group["lr"] == 1.0 and group["weight_decay"] > 0
    assert sum(len(g["params"]) for g in found) == len(list(student.parameters()))


# ---- which caches fit ----


def manifest_of(grid=(2, 7, 7), width=24, classes=5, features=True) -> Manifest:
    targets = {"logits": {"codec": "uint8", "width": classes}}
    if features:
        targets["features"] = {"codec": "float16", "grid": list(grid), "width": width, "map": [*grid, width]}
    return Manifest(Identity(FORMAT, {}, "pyav", ViewPolicy(num_frames=2), (), (), targets), views=1)


OUTPUT = ModelOutput(torch.empty(1, 5), torch.empty(1, 2, 4, 4, 16))


def test_grids_widths_and_times_may_differ_frames_and_classes_may_not():
    maps = LossConfig(feature_mse=1, logit_map_kl=1)
    check_targets(manifest_of(), maps, OUTPUT, 2)
    check_targets(manifest_of(grid=(1, 7, 7)), maps, OUTPUT, 2)
    with pytest.raises(ReskdError, match="of 6 classes.*of 5"):
        check_targets(manifest_of(classes=6), LossConfig(logit_map_kl=1), OUTPUT, 2)
    with pytest.raises(ReskdError, match="views have 2 frames.*takes 4"):
        check_targets(manifest_of(), maps, OUTPUT, 4)
    with pytest.raises(ReskdError, match="need 'features'"):
        check_targets(manifest_of(features=False), LossConfig(logit_map_kl=1), OUTPUT, 2)


def test_the_targets_that_terms_read():
    assert LossConfig(logit_map_kl=1).stored_targets == ("features",)
    assert LossConfig(logit_map_kl=1, logit_kl=1, feature_mse=1).stored_targets == ("features", "logits")
    assert LossConfig().stored_targets == ()
