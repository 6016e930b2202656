"""Metrics where torchmetrics' defaults would mislead: agreeing first batches, classes without clips, empty ranks."""

from types import SimpleNamespace

import pytest
import torch

from cache.errors import ReskdError
from stages.data.join import Batch
from stages.training.distributed import Ranks
from stages.training.metrics import score

ALONE = Ranks(0, 1, torch.device("cpu"))


def batches(*pairs):
    """Batches whose clips [B,1,1,1,K] are the logits themselves."""
    for logits, labels in pairs:
        logits, labels = torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)
        usable = torch.ones(len(labels), dtype=torch.bool)
        yield Batch(logits, labels, torch.zeros(0), usable, torch.zeros(0))


def model(clips):
    return SimpleNamespace(logits=clips)


def one_hot(*labels, classes=8):
    return torch.eye(classes)[list(labels)].tolist()


def test_metrics_that_agree_on_the_first_batch_stay_apart():
    second = [[0.9, 1, 0, 0, 0, 0, 0, 0]] * 2  # the truth is second
    result = score(model, batches((one_hot(0, 1), [0, 1]), (second, [0, 0])), 8, ALONE, amp=False)
    assert result["top1"] == 50 and result["top5"] == 100
    assert result["mean_class"] == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_a_class_without_clips_counts_nowhere():
    result = score(model, batches((one_hot(0, 0, 2, 1), [0, 0, 0, 1])), 8, ALONE, amp=False)
    assert result["mean_class"] == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_fewer_classes_than_five_and_unlabelled_clips():
    result = score(model, batches((one_hot(0, 1, 1, classes=2), [0, 0, -1])), 2, ALONE, amp=False)
    assert result["top1"] == 50 and result["top5"] == 100 and result["clips"] == 2


def test_refuses_a_data_set_without_labels():
    with pytest.raises(ReskdError, match="unlabelled"):
        score(model, batches((one_hot(0), [-1])), 8, ALONE, amp=False)
