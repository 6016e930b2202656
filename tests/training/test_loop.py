"""When the training loop saves and asks, and that a validation leaves no trace in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.student import loop
from stages.student.train_student import train_student
from tests.runs import rows_of, train_config


@given(st.floats(1e-4, 100))
def test_ranks_ask_each_other_at_most_ten_seconds_apart_or_at_every_step(seconds):
    steps = loop.steps_between_questions(seconds)
    assert steps >= 1 and (steps * seconds <= loop.STOP_SECONDS or steps == 1)
    assert (steps + 1) * seconds > loop.STOP_SECONDS  # and no more often than that


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, 4), (1e9, 1)])
def test_a_short_epoch_has_a_checkpoint_only_if_the_last_one_is_old(few, tmp_path, monkeypatch, seconds, saved):
    saves = []
    save = loop.save_checkpoint
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    monkeypatch.setattr(loop, "save_checkpoint", lambda run: (saves.append(run.progress.step), save(run)))
    train_student(train_config(tmp_path / "run", few, "schedule.epochs=4", "batch_size=10"))
    assert saves == [4, 8, 12, 16][-saved:]
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 16


def test_a_best_model_so_far_is_followed_by_a_checkpoint_that_knows_it(few, tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    save = loop.save_checkpoint
    monkeypatch.setattr(
        loop, "save_checkpoint", lambda run: (saves.append((run.progress.step, run.progress.best)), save(run))
    )
    train_student(train_config(tmp_path / "run", few, f"data.val={few.val}", "schedule.epochs=3", "batch_size=10"))
    validated = rows_of(tmp_path / "run", "val")
    assert saves[0] == (4, {k: v for k, v in validated[0].items() if k not in ("kind", "step")})
    tops = [row["top1"] for row in validated]
    improving = [4 * (i + 1) for i, top in enumerate(tops) if i == 0 or top > max(tops[:i])]
    assert [step for step, _ in saves] == sorted({*improving, 12})


def test_a_validation_changes_nothing_in_the_training(few, tmp_path):
    """Dropout and BatchNorm are in training mode again after it."""
    changes = ["model.dropout=0.5", "schedule.epochs=3", "batch_size=10"]
    for name, more in (("plain", []), ("validated", [f"data.val={few.val}"])):
        train_student(train_config(tmp_path / name, few, *changes, *more))
    assert rows_of(tmp_path / "plain") == rows_of(tmp_path / "validated")
