"""Metrics against scikit-learn, ties and empty classes included; views averaged; ranks that change nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_score,
    recall_score,
)

from cache.errors import ReskdError
from stages.metrics.accuracy import ScoredVideos, average_precision, confusion, measure, per_class
from stages.metrics.scoring import ScoredModel, score_models, score_videos
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.runtime.distributed import Ranks
from stages.stream.batch import Batch

ALONE = Ranks(0, 1, torch.device("cpu"))


def batch_of(logits, labels, *, views=1, first=0, usable=None):
    """Videos first, first + 1, … of shard 0, whose clips [B,K] are the logits themselves; labels -1: none; or tuples."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    index = torch.tensor([(0, first + i, v) for i in range(len(labels)) for v in range(views)])
    several = [(label,) if isinstance(label, int) else label for label in labels]
    multi_hot = torch.tensor([[float(k in row) for k in range(logits.shape[-1])] for row in several])
    every = torch.ones(len(index), dtype=torch.bool) if usable is None else torch.tensor(usable)
    first_labels = torch.tensor([row[0] for row in several]).repeat_interleave(views)
    return Batch(logits, first_labels, multi_hot.repeat_interleave(views, 0), every, index)


def model(clips):
    return SimpleNamespace(logits=clips)


def score(batches, classes) -> dict:
    (result,) = score_models([ScoredModel(model, None, amp=False)], batches, classes, ALONE)
    if isinstance(result, ReskdError):
        raise result
    return result


def one_hot(*labels, classes=8):
    return torch.eye(classes)[list(labels)].tolist()


def scored(probabilities, truth) -> ScoredVideos:
    videos = np.stack([np.zeros(len(truth), int), np.arange(len(truth))], 1)
    return ScoredVideos(videos, np.asarray(probabilities, float), np.asarray(truth, bool), 0, 0)


# ---- against scikit-learn ----

few = st.integers(0, 4).map(lambda n: n / 4)  # so few values that many scores tie
shapes = st.tuples(st.integers(1, 12), st.integers(3, 7))


@given(shapes.flatmap(lambda s: st.tuples(arrays.arrays(float, s, elements=few), arrays.arrays(bool, s))))
@settings(max_examples=150, deadline=None)
def test_mean_average_precision_is_scikit_learns(case):
    scores, truth = case
    truth[0, 0] = True  # something to score; other classes may be empty
    has = truth.any(0)
    wanted = [average_precision_score(truth[:, k], scores[:, k]) for k in np.flatnonzero(has)]
    columns = [average_precision(scores[:, k], truth[:, k]) for k in range(len(has))]
    assert np.array(columns)[has] == pytest.approx(wanted) and np.isnan(np.array(columns)[~has]).all()
    assert measure(scored(scores, truth))["map"] == pytest.approx(100 * np.mean(wanted))


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")  # of classes without clips, and k as large as K
@given(st.data(), shapes)
@settings(max_examples=150, deadline=None)
def test_accuracies_are_scikit_learns(data, shape):
    scores = data.draw(arrays.arrays(float, shape, elements=few))
    labels = data.draw(arrays.arrays(int, shape[0], elements=st.integers(0, shape[1] - 1)))
    result = scored(scores, np.eye(shape[1], dtype=bool)[labels])
    figures, table, best = measure(result), per_class(result), result.best[:, 0]
    every = {"labels": range(shape[1])}
    assert figures["headline"] == "top1"
    # scikit-learn's top-k gives ties to the last class. A class stands before the label if it scores higher, or equal and
    # has a lower number.
    own = scores[np.arange(len(labels)), labels][:, None]
    before = ((scores > own) | ((scores == own) & (np.arange(shape[1]) < labels[:, None]))).sum(1)
    assert figures["top1"] == pytest.approx(100 * np.mean(scores.argmax(1) == labels)) == 100 * np.mean(before == 0)
    assert figures["top5"] == pytest.approx(100 * np.mean(before < 5))
    assert figures["mean_class"] == pytest.approx(100 * balanced_accuracy_score(labels, best))
    each = {**every, "average": None, "zero_division": np.nan}
    assert table["recall"] == pytest.approx(100 * recall_score(labels, best, **each), nan_ok=True)
    assert table["precision"] == pytest.approx(100 * precision_score(labels, best, **each), nan_ok=True)
    assert (confusion(result) == confusion_matrix(labels, best, **every)).all()


def mean_class_of_mmaction2(labels, best) -> float:
    """Per-class hits over the union of labels and answers; a class of answers alone has none."""
    classes = sorted({*labels} | {*best})
    own = [[b == c for label, b in zip(labels, best, strict=True) if label == c] for c in classes]
    return 100 * sum(sum(hits) / len(hits) if hits else 0.0 for hits in own) / len(classes)


@given(st.data(), shapes)
@settings(max_examples=150, deadline=None)
def test_where_it_differs_mmaction2s_mean_class_accuracy_stands_beside_ours(data, shape):
    scores = data.draw(arrays.arrays(float, shape, elements=few))
    labels = data.draw(arrays.arrays(int, shape[0], elements=st.integers(0, shape[1] - 1))).tolist()
    figures = measure(scored(scores, np.eye(shape[1], dtype=bool)[labels]))
    best = scores.argmax(1).tolist()  # of equal scores the first, as in mmaction2
    wanted = mean_class_of_mmaction2(labels, best)
    assert figures.get("mean_class_mmaction2", figures["mean_class"]) == pytest.approx(wanted)
    assert ("mean_class_mmaction2" in figures) is bool({*best} - {*labels})


def test_several_labels_a_hit_is_any_of_them_and_map_is_the_headline():
    """Upstream's top-k compares a video's list of labels with its classes position by position."""
    probabilities = [[0.5, 0.3, 0.1, 0.1, 0, 0], [0.1, 0.2, 0.3, 0.4, 0, 0], [0.4, 0.3, 0.2, 0.1, 0, 0]]
    truth = np.zeros((3, 6), bool)
    truth[0, [1, 2]], truth[1, [0, 3]], truth[2, 5] = True, True, True
    figures = measure(scored(probabilities, truth))
    assert figures["headline"] == "map"
    assert figures["top1"] == pytest.approx(100 / 3)
    assert figures["top5"] == pytest.approx(200 / 3)  # classes 4 and 5 of the last video are equal: class 4 ranks first
    assert figures["mean_class"] == pytest.approx(100 * np.mean([0, 0, 0, 1, 0]))  # class 4 has no clip
    wanted = average_precision_score(truth[:, [0, 1, 2, 3, 5]], np.array(probabilities)[:, [0, 1, 2, 3, 5]])
    assert figures["map"] == pytest.approx(100 * wanted)


# ---- from batches of views to one answer a video ----


def test_a_class_without_clips_counts_nowhere():
    result = score([batch_of(one_hot(0, 0, 2, 1), [0, 0, 0, 1])], 8)
    assert result["mean_class"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert result["mean_class_mmaction2"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)  # of classes 0, 1 and 2


def test_fewer_classes_than_five_and_unlabelled_clips():
    result = score([batch_of(one_hot(0, 1, 1, classes=2), [0, 0, -1])], 2)
    assert result["top1"] == 50 and result["top5"] == 100 and result["clips"] == 2 and result["unlabelled"] == 1


def test_refuses_a_data_set_without_labels_and_scores_that_are_not_finite():
    with pytest.raises(ReskdError, match="unlabelled"):
        score([batch_of(one_hot(0), [-1])], 8)
    with pytest.raises(ReskdError, match="not finite"):
        score([batch_of([[0.0, float("nan"), 1.0]], [0])], 3)


def test_a_video_with_one_view_that_failed_is_counted_and_not_scored():
    logits = [one_hot(0)[0]] * 2 + [one_hot(1)[0]] * 2
    result = score([batch_of(logits, [0, 3], views=2, usable=[True, True, True, False])], 8)
    assert (result["clips"], result["failed"], result["top1"]) == (1, 1, 100)


def test_views_are_averaged_and_run_in_parts():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 3
    seen = []

    def counted(clips):
        seen.append(len(clips))
        return model(clips)

    batches = [batch_of(logits, [0, 2], views=3)]
    found = {
        average: score_videos(counted, batches, 3, ALONE, False, average=average, forward=4).probabilities
        for average in ("prob", "logit")
    }
    assert seen == [4, 2, 4, 2]
    views = logits.double().view(2, 3, 3)
    for i in range(2):
        each = [np.exp(v) / np.exp(v).sum() for v in views[i].numpy()]
        assert found["prob"][i] == pytest.approx(np.mean(each, axis=0), abs=1e-12)
        mean = views[i].numpy().mean(0)
        assert found["logit"][i] == pytest.approx(np.exp(mean) / np.exp(mean).sum(), abs=1e-12)
    assert np.abs(found["prob"] - found["logit"]).max() > 0.01


def test_averaged_features_are_averaged_logits_where_the_classifier_is_linear():
    args = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
    torch.manual_seed(0)
    net = build_model(ModelConfig(arch="tsm", backbone="resnet18", args=args, num_frames=2, num_classes=4)).eval()
    torch.nn.init.normal_(net.head.fc.weight)
    batch = batch_of(torch.zeros(6, 4), [0, 1], views=3)
    batch = batch._map(lambda t: torch.randint(0, 256, (6, 2, 3, 16, 16), dtype=torch.uint8) if t is batch.clips else t)
    logit, feature = (
        score_videos(net, [batch], 4, ALONE, False, average=average).probabilities for average in ("logit", "feature")
    )
    assert feature == pytest.approx(logit, abs=1e-5)
    with torch.inference_mode():
        assert not np.allclose(feature[0], net(batch.clips).logits[0].softmax(-1).numpy(), atol=1e-4)


# ---- ranks ----


class Gathered(SimpleNamespace):
    """Stands for one of several ranks: the others found what is in `others`."""

    device = torch.device("cpu")

    def gather(self, value):
        return [value, *self.others]


def test_ranks_and_repeated_rows_change_nothing():
    """Rank 1 has the odd batches and, as a sampler that pads would have it, rank 0's first once more."""
    rng = np.random.default_rng(0)
    truth = [int(t) for t in rng.integers(-1, 5, 40)]
    batches = [batch_of(rng.normal(size=(4, 5)), truth[i : i + 4], first=i) for i in range(0, 40, 4)]
    batches[3].usable[1] = False
    alone = score_videos(model, batches, 5, ALONE, amp=False)
    others = []

    def listen(value):
        others.append(value)
        return [value]

    score_videos(model, [*batches[1::2], batches[0]], 5, SimpleNamespace(device=ALONE.device, gather=listen), amp=False)
    both = score_videos(model, batches[::2], 5, Gathered(others=others), amp=False)
    for name in ("videos", "probabilities", "truth"):
        assert (getattr(alone, name) == getattr(both, name)).all()
    assert measure(alone) == measure(both) and alone.failed == 1 and alone.unlabelled == truth.count(-1)
    idle = score_videos(model, [], 5, Gathered(others=[*others, others[0]]), amp=False)  # a rank without any video
    assert len(idle.videos) == len({tuple(v) for v in idle.videos.tolist()}) > 0
