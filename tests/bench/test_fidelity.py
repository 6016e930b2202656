"""The fidelity study: its arithmetic, its arms, and a small run of all of it through the command line."""

import json
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from stages.bench.arms import (
    LABELS,
    ONLINE,
    encoding_arms,
    first_arms,
    packed_arm,
    reference_arm,
    schedule_arms,
    wide_arms,
)
from stages.bench.outcomes import Outcome, no_worse, paired_difference, steps_to
from stages.bench.processes import in_processes
from stages.metrics.spread import SeedScores
from tests.runs import command, sets


def outcome(*top1: float) -> Outcome:
    return Outcome(LABELS, SeedScores(top1), (), None)


def test_differences_are_taken_seed_by_seed():
    a, b = outcome(60.0, 71.0, 83.0), outcome(58.0, 70.0, 80.0)
    mean, error = paired_difference(a, b)
    assert mean == pytest.approx(2.0) and error == pytest.approx((1.0**2 / 3) ** 0.5)  # of 2, 1, 3
    assert paired_difference(outcome(60.0), outcome(58.5)) == (1.5, 0.0)


def test_a_loss_counts_from_half_a_point_and_two_standard_errors_on():
    assert no_worse(outcome(79.6, 79.6, 79.6), outcome(80.0, 80.0, 80.0))
    assert not no_worse(outcome(79.4, 79.4, 79.4), outcome(80.0, 80.0, 80.0))
    assert no_worse(outcome(76.0, 82.0, 79.0), outcome(80.0, 80.0, 80.0))  # -4, +2, -1: it may be chance
    assert not no_worse(outcome(76.0, 76.5, 75.5), outcome(80.0, 80.0, 80.0))


def test_steps_to_the_end_of_labels_alone():
    labels = (((10, 20.0), (20, 40.0), (30, 60.0)), ((10, 20.0), (20, 44.0), (30, 64.0)))  # ends at 62 on average
    fast = (((10, 50.0), (20, 74.0), (30, 80.0)), ((10, 50.0), (20, 74.0), (30, 80.0)))
    assert steps_to(fast, labels) == pytest.approx(15 / 30)  # halfway from 50 to 74
    assert steps_to(labels, labels) == pytest.approx(1.0)
    assert steps_to((((10, 10.0), (20, 61.0)),), labels) is None
    assert steps_to((((10, 70.0), (20, 71.0)),), labels) == pytest.approx(10 / 30)


def test_arms_have_names_and_caches_of_their_own():
    arms = [*first_arms(False), *encoding_arms(2, 64, (2, 2), False), *wide_arms(2, 512, (2, 2))]
    arms += [packed_arm(arms[-1]), *schedule_arms([LABELS, ONLINE, arms[-1]])]
    assert len({arm.name for arm in arms}) == len(arms)
    stored = {(arm.cache, str(arm.features), arm.net) for arm in arms if arm.teacher == "cached"}
    assert len({cache for cache, *_ in stored}) == len(stored)  # one cache for each way of storing, and no more
    online = {arm.name for arm in arms if arm.teacher == "online"}
    assert all(reference_arm(arm).name in online for arm in arms if arm.teacher == "cached" and arm.schedule == 1)


def test_tasks_run_in_processes_of_one_thread_and_an_error_is_raised():
    tasks = {"a": torch.get_num_threads, "b": partial(int, "7"), "c": os.getpid}
    found = dict(in_processes(tasks, 2, "stages.bench.processes"))
    assert (found["a"], found["b"]) == (1, 7) and found["c"] != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes({"bad": partial(int, "x"), "good": os.getpid}, 2, "stages.bench.processes"))


def test_a_small_study_from_the_command_line(tmp_path, few_processes):
    small = {
        "clips": {"train": 40, "val": 40, "test": 40},
        "epochs": 1,
        "teacher_epochs": 1,
        "output": str(tmp_path / "f"),
        "jobs": 1,
    }
    said = command("bench", "fidelity", "--quick", "--seeds", 1, "--json", tmp_path / "out.json", *sets(small))
    figures = {f["name"]: SimpleNamespace(**f) for f in json.loads((tmp_path / "out.json").read_text())}
    assert all(set(vars(f)) == {"name", "value", "unit", "spread", "goal", "ok"} for f in figures.values())
    assert {"labels alone: top-1", "in the loop, features: top-1", "replay, V = 2: top-1", "int4: top-1"} <= set(
        figures
    )
    study = json.loads((tmp_path / "f" / "study.json").read_text())
    arms = {row["arm"]: row for row in study["arms"]}
    assert all(len(row["top1"]) == 1 for row in arms.values())
    assert arms["int4"]["bytes"] < arms["replay, V = 1"]["bytes"] and arms["labels alone"]["bytes"] is None
    (packed,) = (name for name in arms if ", from a pack" in name)
    assert arms[packed]["bytes"] == arms[packed.partition(", from")[0]]["bytes"]
    assert f"{packed}: minus {packed.partition(', from')[0]}" in figures
    a, b = arms["int4"]["top1"], arms["in the loop, features"]["top1"]
    assert figures["int4: minus in the loop, features"].value == pytest.approx(a[0] - b[0])
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("outcome.json")}
    again = command("bench", "fidelity", "--quick", "--seeds", 1, *sets(small))  # a rerun trains nothing
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("outcome.json")} == stamps
    assert said.count("labels alone") and again.count("labels alone")
