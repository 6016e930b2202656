import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.errors import ReskdError
from stages.distill.label_losses import binary_cross_entropy, cross_entropy
from stages.distill.logit_losses import dist, logit_kl
from stages.distill.map_losses import feature_cosine, feature_mse, feature_nmse, feature_relation

MASK = np.array([True, False, True, True])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tensor(array, dtype=torch.float64, grad=False):
    return torch.tensor(array, dtype=dtype, requires_grad=grad)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def bilinear(maps, height, width):
    """[B, T, h, w, D] resized by the definition: pixel centres at i + 1/2, edges repeated."""

    def weights(out, size):
        w = np.zeros((out, size))
        for i in range(out):
            x = max((i + 0.5) * size / out - 0.5, 0)
            low = int(x)
            w[i, low] += 1 - (x - low)
            w[i, min(low + 1, size - 1)] += x - low
        return w

    return np.einsum("ih,jw,bthwd->btijd", weights(height, maps.shape[2]), weights(width, maps.shape[3]), maps)


# Each loss of four rows of which the second has no target, and the same number from its definition in numpy.


def ce(logits, smoothing=0.1):
    return cross_entropy(logits, torch.tensor([2, -1, 0, 4]), smoothing)


def ce_by_hand(logits, smoothing=0.1):
    goal = np.eye(5)[[2, 0, 4]] * (1 - smoothing) + smoothing / 5
    return -(goal * np.log(softmax(logits[MASK]))).sum(1).mean()


MULTI_HOT = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=float)


def bce(logits, targets=MULTI_HOT):
    return binary_cross_entropy(logits, tensor(targets, torch.float32), torch.tensor(MASK))


def bce_by_hand(logits):
    p = 1 / (1 + np.exp(-logits))
    return -(MULTI_HOT * np.log(p) + (1 - MULTI_HOT) * np.log(1 - p))[MASK].mean()


TEACHER_LOGITS = 3 * draw(4, 5, seed=1)


def kl(logits, teacher=TEACHER_LOGITS):
    return logit_kl(logits, tensor(teacher, logits.dtype), 2.0, torch.tensor(MASK))


def kl_by_hand(logits):
    p, q = softmax(TEACHER_LOGITS[MASK] / 2), softmax(logits[MASK] / 2)
    return 4 * (p * np.log(p / q)).sum(1).mean()


TEACHER_MAP = draw(4, 2, 5, 7, 3, seed=2)


def mse(student, teacher=TEACHER_MAP):
    return feature_mse(student, tensor(teacher, student.dtype), torch.tensor(MASK))


def mse_by_hand(student):
    squares = (bilinear(student, 5, 7) - TEACHER_MAP) ** 2
    return np.mean([squares[i].sum() / (2 * 5 * 7 * 3) for i in np.flatnonzero(MASK)])


def standardised_kl(logits, teacher=TEACHER_LOGITS):
    return logit_kl(logits, tensor(teacher, logits.dtype), 2.0, torch.tensor(MASK), standardise=True)


def standardised_kl_by_hand(logits):
    def z(rows):
        return (rows - rows.mean(1, keepdims=True)) / rows.std(1, ddof=1, keepdims=True)

    p, q = softmax(z(TEACHER_LOGITS[MASK]) / 2), softmax(z(logits[MASK]) / 2)
    return 4 * (p * np.log(p / q)).sum(1).mean()


def correlations(logits, teacher=TEACHER_LOGITS):
    return dist(logits, tensor(teacher, logits.dtype), 2.0, torch.tensor(MASK))


def correlations_by_hand(logits):
    p, q = softmax(TEACHER_LOGITS[MASK] / 2), softmax(logits[MASK] / 2)
    clips = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    classes = [np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return 4 * (2 - np.mean(clips) - np.mean(classes))


STD = np.array([0.5, 2.0, 3.0])


def nmse(student, teacher=TEACHER_MAP):
    std = tensor(STD, student.dtype if student.dtype == torch.float64 else torch.float32)
    return feature_nmse(student, tensor(teacher, student.dtype), torch.tensor(MASK), std)


def nmse_by_hand(student):
    squares = ((bilinear(student, 5, 7) - TEACHER_MAP) / STD) ** 2
    return squares[MASK].mean()


def cosine(student, teacher=TEACHER_MAP):
    return feature_cosine(student, tensor(teacher, student.dtype), torch.tensor(MASK))


def cosine_by_hand(student):
    a, b = bilinear(student, 5, 7)[MASK], TEACHER_MAP[MASK]
    return np.mean(1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


RELATED_MAP = draw(4, 2, 4, 6, 3, seed=2)


def relation(student, teacher=RELATED_MAP):
    return feature_relation(student, tensor(teacher, student.dtype), torch.tensor(MASK))


def relation_by_hand(student):
    """Cells of 2x2 of the teacher's map are averaged to the student's 2x3."""
    teacher = RELATED_MAP.reshape(4, 2, 2, 2, 3, 2, 3).mean((3, 5))

    def gram(maps):
        positions = maps.reshape(12, -1)
        return np.array([[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a in positions - positions.mean(0)]
                         for b in positions - positions.mean(0)])  # fmt: skip

    return np.mean([((gram(student[i]) - gram(teacher[i])) ** 2).mean() for i in np.flatnonzero(MASK)])


LOSSES = [
    pytest.param(standardised_kl, standardised_kl_by_hand, 2 * draw(4, 5), id="logit_kl-standardised"),
    pytest.param(correlations, correlations_by_hand, 2 * draw(4, 5), id="dist"),
    pytest.param(nmse, nmse_by_hand, draw(4, 2, 3, 4, 3), id="feature_nmse"),
    pytest.param(cosine, cosine_by_hand, draw(4, 2, 3, 4, 3), id="feature_cosine"),
    pytest.param(relation, relation_by_hand, draw(4, 2, 2, 3, 6), id="feature_relation"),
    pytest.param(ce, ce_by_hand, 2 * draw(4, 5), id="cross_entropy"),
    pytest.param(bce, bce_by_hand, 2 * draw(4, 5), id="binary_cross_entropy"),
    pytest.param(kl, kl_by_hand, 2 * draw(4, 5), id="logit_kl"),
    pytest.param(mse, mse_by_hand, draw(4, 2, 3, 4, 3), id="feature_mse-up"),
    pytest.param(mse, mse_by_hand, draw(4, 2, 5, 7, 3), id="feature_mse-same"),
    pytest.param(mse, mse_by_hand, draw(4, 2, 8, 9, 3), id="feature_mse-down"),
]


TARGETS = {kl: TEACHER_LOGITS, standardised_kl: TEACHER_LOGITS, correlations: TEACHER_LOGITS, relation: RELATED_MAP}


@pytest.mark.parametrize("loss, by_hand, student", LOSSES)
def test_each_loss_is_its_definition(device, loss, by_hand, student):
    with device:
        assert loss(tensor(student)).item() == pytest.approx(by_hand(student), rel=1e-7)
        assert loss(tensor(student, torch.float32)).item() == pytest.approx(by_hand(student), rel=1e-5)


@pytest.mark.parametrize("loss, by_hand, student", LOSSES)
def test_gradients_are_those_of_finite_differences_and_nil_on_masked_rows(loss, by_hand, student):
    student = tensor(student, grad=True)
    assert torch.autograd.gradcheck(loss, student)
    loss(student).backward()
    assert torch.equal(student.grad.flatten(1).abs().amax(1) > 0, torch.tensor(MASK))


@pytest.mark.parametrize("loss, by_hand, student", LOSSES)
def test_half_precision_under_autocast_is_computed_in_float32(loss, by_hand, student):
    half = tensor(student, torch.bfloat16, grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half)
    assert value.dtype == torch.float32
    value.backward()
    assert torch.isfinite(half.grad).all()
    # Only the inputs were rounded: the loss of the rounded inputs in float32 is the same number.
    if loss in (ce, bce):
        assert value.item() == pytest.approx(by_hand(half.detach().double().numpy()), rel=1e-5)
    else:
        teacher = tensor(TARGETS.get(loss, TEACHER_MAP), torch.bfloat16).float().numpy()
        assert value.item() == pytest.approx(loss(half.detach().float(), teacher).item(), rel=1e-6)


@pytest.mark.parametrize(
    "loss, target",
    [(bce, MULTI_HOT), (mse, TEACHER_MAP), (nmse, TEACHER_MAP), (cosine, TEACHER_MAP), *TARGETS.items()],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_stands_in_a_masked_row_of_the_targets_does_not_matter(loss, target):
    student = tensor(draw(4, 2, 3, 4, 3) if target.ndim == 5 else draw(4, 5), torch.float32, grad=True)
    expected = loss(student, target)
    (gradient,) = torch.autograd.grad(expected, student)
    for rubbish in (np.nan, np.inf, 1e30):
        spoilt = target.copy()
        spoilt[1] = rubbish
        value = loss(student, spoilt)
        assert torch.equal(value, expected)
        assert torch.equal(torch.autograd.grad(value, student)[0], gradient)


def test_a_loss_of_no_rows_is_zero_with_a_gradient_of_zero():
    logits, maps = tensor(draw(3, 5), grad=True), tensor(draw(3, 2, 2, 2, 4), grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    for value, student in [
        (cross_entropy(logits, torch.tensor([-1, -1, -1])), logits),
        (cross_entropy(logits, torch.tensor([-1, -1, -1]), 0.1), logits),
        (binary_cross_entropy(logits, torch.ones(3, 5), none), logits),
        (logit_kl(logits, torch.full((3, 5), torch.nan), 2.0, none), logits),
        (logit_kl(logits, torch.full((3, 5), torch.nan), 2.0, none, standardise=True), logits),
        (dist(logits, torch.full((3, 5), torch.nan), 2.0, none), logits),
        (feature_mse(maps, torch.full((3, 2, 3, 3, 4), torch.nan), none), maps),
        (feature_nmse(maps, torch.full((3, 2, 3, 3, 4), torch.nan), none, torch.ones(4)), maps),
        (feature_cosine(maps, torch.full((3, 2, 3, 3, 4), torch.nan), none), maps),
        (feature_relation(maps, torch.full((3, 2, 3, 3, 7), torch.nan), none), maps),
    ]:
        assert value.item() == 0
        assert torch.equal(torch.autograd.grad(value, student)[0], torch.zeros_like(student))


def test_feature_mse_is_the_seeds_expression_and_keeps_its_scale():
    """Upstream: 100 * mean((up(s) - t)^2) over all rows, times, channels and 7x7 positions; up is 4x4 -> 7x7."""
    s = torch.arange(2 * 3 * 16 * 8, dtype=torch.float64).sin().view(2, 3, 4, 4, 8)
    t = torch.arange(2 * 3 * 49 * 8, dtype=torch.float64).mul(0.7).cos().view(2, 3, 7, 7, 8)
    up = F.interpolate(s.flatten(0, 1).permute(0, 3, 1, 2), size=(7, 7), mode="bilinear", align_corners=False)
    seed = 100 * ((up - t.flatten(0, 1).permute(0, 3, 1, 2)) ** 2).mean()
    mine = 100 * feature_mse(s, t, torch.ones(2, dtype=torch.bool))
    assert mine.item() == pytest.approx(seed.item(), rel=1e-12)
    assert mine.item() == pytest.approx(GOLDEN, rel=1e-9)


GOLDEN = 84.65800619535993


def test_logit_kl_is_nil_for_equal_logits_and_its_gradient_keeps_its_size_with_temperature():
    logits, all_rows = tensor(draw(4, 5), grad=True), torch.ones(4, dtype=torch.bool)
    assert logit_kl(logits, logits.detach() + 7, 3.0, all_rows).item() == pytest.approx(0, abs=1e-12)
    norms = []
    for temperature in (50.0, 100.0):
        value = logit_kl(logits, tensor(TEACHER_LOGITS), temperature, all_rows)
        norms.append(torch.autograd.grad(value, logits)[0].norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_standardised_logits_are_free_in_their_size_and_equal_logits_have_a_small_gradient():
    logits, rows = tensor(draw(4, 5), grad=True), torch.ones(4, dtype=torch.bool)
    assert logit_kl(3 * logits + 7, logits.detach(), 2.0, rows, True).item() == pytest.approx(0, abs=1e-12)
    equal = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)  # those of a fresh classifier of zeros
    (gradient,) = torch.autograd.grad(logit_kl(equal, tensor(TEACHER_LOGITS), 2.0, rows, True), equal)
    assert 0 < gradient.abs().max() < 100


def test_correlations_of_one_clip_are_those_over_its_classes():
    logits = tensor(draw(4, 5))
    one = torch.tensor([True, False, False, False])
    r = np.corrcoef(softmax(logits[0].numpy()), softmax(TEACHER_LOGITS[0]))[0, 1]
    assert dist(logits, tensor(TEACHER_LOGITS), 1.0, one).item() == pytest.approx(1 - r)


def test_a_student_that_gives_the_mean_of_each_channel_has_a_normalised_error_of_one():
    teacher = tensor(draw(200, 1, 2, 2, 3) * STD + 5)
    for scale in (1, 1000):
        std = scale * teacher.flatten(0, 3).std(0, unbiased=False)
        mean = scale * teacher.flatten(0, 3).mean(0).expand_as(teacher)
        assert feature_nmse(mean, scale * teacher, torch.ones(200, dtype=torch.bool), std).item() == pytest.approx(1)


def test_relations_see_neither_the_size_nor_a_turn_nor_a_shift_of_the_channels():
    turn = tensor(np.linalg.qr(draw(5, 5))[0])
    maps, rows = tensor(draw(2, 2, 3, 3, 5)), torch.ones(2, dtype=torch.bool)
    assert feature_relation(maps @ turn * 7 + 3, maps, rows).item() == pytest.approx(0, abs=1e-12)
    assert feature_relation(maps.flip(2), maps, rows).item() > 0.01  # but they see where things are


@pytest.mark.parametrize("loss", [feature_mse, feature_cosine, lambda *maps: feature_nmse(*maps, torch.ones(8))])
def test_maps_that_do_not_fit_are_refused_with_both_shapes(loss):
    with pytest.raises(ReskdError, match=r"\[2, 4, 4, 6\].*\[2, 7, 7, 8\].*as wide as"):
        loss(torch.zeros(2, 2, 4, 4, 6), torch.zeros(2, 2, 7, 7, 8), torch.ones(2, dtype=torch.bool))


def test_logits_of_other_classes_are_refused_rather_than_broadcast():
    mask = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ReskdError, match=r"\[2, 5\].*teacher's logits \[2, 1\].*num_classes"):
        logit_kl(torch.zeros(2, 5), torch.zeros(2, 1), 1.0, mask)
    with pytest.raises(ReskdError, match=r"\[2, 5\].*labels \[2, 4\]"):
        binary_cross_entropy(torch.zeros(2, 5), torch.zeros(2, 4), mask)
