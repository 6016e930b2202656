"""One label of several, drawn anew each epoch: uniform, and the same wherever a clip is met."""

import numpy as np
import pytest
import torch

from cache.errors import ReskdError
from stages.prepare.prepare import prepare
from stages.stream.batch import Batch
from stages.stream.random_label import random_labels
from stages.student import loop
from stages.student.train_student import train_student
from tests.runs import rows_of, train_config

CLASSES = 6


def batch_of(labels: list[tuple[int, ...]], shard: int = 0) -> Batch:
    multi_hot = torch.zeros(len(labels), CLASSES)
    for i, own in enumerate(labels):
        multi_hot[i, list(own)] = 1
    return Batch(
        clips=torch.zeros(len(labels), 1, 3, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([own[0] if own else -1 for own in labels]),
        multi_hot=multi_hot,
        usable=torch.ones(len(labels), dtype=torch.bool),
        index=torch.tensor([[shard, row, 7] for row in range(len(labels))]),
    )


def draws(batch: Batch, epochs: int, seed: int = 0) -> np.ndarray:
    """[epochs, B]"""
    return np.stack([random_labels(batch, seed, epoch).numpy() for epoch in range(epochs)])


def test_each_label_is_as_likely_over_epochs_and_over_rows():
    drawn = draws(batch_of([(4, 1, 2)] * 50), 60)
    for counts in (np.bincount(drawn.ravel(), minlength=CLASSES), np.bincount(drawn[0], minlength=CLASSES)):
        assert counts[[0, 3, 5]].sum() == 0
        expected = counts.sum() / 3
        assert ((counts[[1, 2, 4]] - expected) ** 2 / expected).sum() < 13.8  # chi-square of 2 degrees: p = 0.001
    assert all(len(np.unique(column)) == 3 for column in drawn.T)  # no row keeps to one
    pairs = np.bincount(CLASSES * drawn[1:].ravel() + drawn[:-1].ravel())  # nor do epochs follow one another
    assert ((pairs[pairs > 0] - 2950 / 9) ** 2 / (2950 / 9)).sum() < 26.1  # 8 degrees


def test_clips_of_one_label_or_none_stay_as_they_are():
    batch = batch_of([(3,), (), (5,), (2, 0)])
    drawn = draws(batch, 20)
    assert (drawn[:, :3] == [3, -1, 5]).all() and set(drawn[:, 3]) == {0, 2}
    assert batch.labels.tolist() == [3, -1, 5, 2]


def test_a_draw_depends_on_seed_epoch_shard_and_row_alone():
    labels = [tuple(range(CLASSES))] * 40
    whole, order = batch_of(labels), np.random.default_rng(0).permutation(40)
    drawn = random_labels(whole, 3, 5)
    for cut in (order[:7], order[7:]):  # other batches, another order, another view
        part = Batch(
            whole.clips[cut], whole.labels[cut], whole.multi_hot[cut], whole.usable[cut],
            torch.stack([*whole.index[cut, :2].T, torch.zeros(len(cut), dtype=torch.int64)], 1),
        )  # fmt: skip
        assert torch.equal(random_labels(part, 3, 5), drawn[cut])
    others = [random_labels(whole, 4, 5), random_labels(whole, 3, 6), random_labels(batch_of(labels, 1), 3, 5)]
    assert all((other != drawn).sum() > 20 for other in others)


def test_draws_are_the_same_forever():
    assert draws(batch_of([tuple(range(CLASSES))] * 8), 2).tolist() == GOLDEN


GOLDEN = [[0, 2, 4, 4, 3, 3, 4, 0], [1, 2, 5, 1, 1, 1, 5, 1]]


@pytest.fixture(scope="module")
def several(data, tmp_path_factory):
    """24 clips, every other one of two labels."""
    folder = tmp_path_factory.mktemp("several")
    paths = sorted((data.videos / "val").rglob("*.mp4"))[:24]
    (folder / "two.csv").write_text("".join(f"{p},a,b\n" if i % 2 else f"{p},a\n" for i, p in enumerate(paths)))
    prepare(folder / "two.csv", folder / "data", workers=1)
    return type(data)(train=folder / "data", val=None)


def test_it_trains_on_clips_of_several_labels_alike_on_any_workers(several, tmp_path):
    changes = ["losses.random_label=true", "batch_size=8", "schedule.epochs=3"]
    whole = train_config(tmp_path / "whole", several, *changes)
    train_student(whole)
    again = train_config(tmp_path / "again", several, *changes, "loader.workers=0")
    train_student(again)
    assert rows_of(again.output) == rows_of(whole.output) and len(rows_of(whole.output)) == 9
    plain = train_config(tmp_path / "plain", several)
    with pytest.raises(ReskdError, match=r"2 labels.*random_label"):
        train_student(plain)


def test_every_micro_batch_is_drawn_for_its_epoch_after_a_resume_too(several, tmp_path, monkeypatch):
    changes = ["losses.random_label=true", "batch_size=4", "accumulate=2", "schedule.epochs=2", "seed=9"]
    config, calls = train_config(tmp_path / "run", several, *changes, "checkpoint_every=1"), []

    def noted(batch, seed, epoch):
        calls.append((seed, epoch))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return random_labels(batch, seed, epoch)

    monkeypatch.setattr(loop, "random_labels", noted)
    with pytest.raises(KeyboardInterrupt):
        train_student(config)
    train_student(config, resume=True)
    assert calls == [(9, 0)] * 6 + [(9, 1)] * 3 + [(9, 1)] * 4  # the step that was cut is done again
