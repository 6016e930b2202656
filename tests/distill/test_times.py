"""Maps of a student and a teacher that keep another number of a clip's times."""

import pytest
import torch
from test_student import OUTPUT, manifest_of

from cache.errors import ReskdError
from stages.distill.check_targets import check_targets
from stages.distill.config import LossConfig
from stages.distill.losses import feature_mse, logit_map_kl
from stages.distill.times import at_common_times, describe_times, mean_over_parts

ALL = torch.ones(2, dtype=torch.bool)


def maps(times, seed=0, side=3, width=4) -> torch.Tensor:
    return torch.randn(2, times, side, side, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length, times", [(8, 4), (8, 1), (3, 2), (8, 3), (5, 4)])
def test_each_part_is_the_mean_of_what_lies_in_it(length, times):
    """Told by a fine clock: every time is repeated until the parts have whole numbers of ticks."""
    given = maps(length)
    ticks = given.repeat_interleave(times, 1).unflatten(1, (times, length)).mean(2)
    torch.testing.assert_close(mean_over_parts(given, times), ticks)


def test_maps_of_equal_times_are_not_touched():
    student, teacher = maps(4), maps(4, seed=1)
    found = at_common_times(student, teacher)
    assert found[0] is student and found[1] is teacher


def test_a_student_of_fewer_times_learns_as_from_every_time_of_its_teacher():
    student, teacher = maps(2).requires_grad_(), maps(8, seed=1)
    (found,) = torch.autograd.grad(feature_mse(student, teacher, ALL), student)
    (wanted,) = torch.autograd.grad(feature_mse(student.repeat_interleave(4, 1), teacher, ALL), student)
    torch.testing.assert_close(found, wanted)


def test_a_student_of_more_times_is_free_within_a_time_of_its_teacher():
    teacher = maps(2, seed=1)
    change = maps(1, seed=2)
    student = teacher.repeat_interleave(2, 1) + torch.cat([change, -change, -change, change], 1)
    assert feature_mse(student, teacher, ALL) < 1e-20
    assert feature_mse(student, teacher.repeat_interleave(2, 1), ALL) > 0.5


def test_a_constant_error_costs_the_same_at_all_times():
    for student_times, teacher_times in ((4, 4), (8, 2), (2, 8), (3, 2)):
        student = torch.full((2, student_times, 3, 3, 4), 3.0)
        teacher = torch.full((2, teacher_times, 5, 5, 4), 1.0)
        assert feature_mse(student, teacher, ALL).item() == pytest.approx(4.0)


def test_class_maps_of_other_times_are_compared_and_a_row_without_target_counts_nothing():
    student, teacher = maps(4).requires_grad_(), maps(2, seed=1)
    mask = torch.tensor([True, False])
    broken = teacher.clone()
    broken[1] = torch.nan
    for loss in (lambda s, t: logit_map_kl(s, t, 2.0, mask), lambda s, t: feature_mse(s, t, mask)):
        found = loss(student, broken)
        (gradient,) = torch.autograd.grad(found, student)
        assert found > 0 and gradient[0].abs().max() > 0 and not gradient[1].any()
        torch.testing.assert_close(found, loss(mean_over_parts(student, 2), broken))


def test_the_sentence_says_which_side_is_averaged():
    assert describe_times(4, 4) is None
    assert "the student's map has 8 times, the teacher's 4: the student's are averaged" in describe_times(8, 4)
    assert "the teacher's 8: the teacher's are averaged" in describe_times(4, 8)


def test_maps_reduced_to_a_grid_serve_students_of_their_times_alone():
    reduced = manifest_of(grid=(1, 4, 4))
    reduced.identity.targets["features"]["map"] = [1, 7, 7, 24]
    with pytest.raises(ReskdError, match="reduced to the grid 4×4 and have 1 times, the student's map has 2"):
        check_targets(reduced, LossConfig(feature_mse=1), OUTPUT, 2)


def test_a_teacher_with_its_own_pooling_has_no_class_map():
    manifest = manifest_of()
    manifest.identity.teacher["model"] = {"pooling": "own"}
    check_targets(manifest, LossConfig(feature_mse=1, logit_kl=1), OUTPUT, 2)
    with pytest.raises(ReskdError, match="or a pooling of its own .model.pooling: own., such as a class token"):
        check_targets(manifest, LossConfig(logit_map_kl=1), OUTPUT, 2)
