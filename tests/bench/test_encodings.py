"""`bench encodings` and `bench join`: what they measure, in the form of every figure."""

import json

import numpy as np
import pytest

from stages.bench import join, resident
from stages.bench.figures import at_most, median_of
from tests.runs import command

FORM = {"name", "value", "unit", "spread", "goal", "ok"}


def test_encodings_of_a_teacher_on_a_data_set(data, teacher, tmp_path):
    out = tmp_path / "e.json"
    command("bench", "encodings", "--videos", data.val, "--teacher", teacher, "--views", 2, "--student-grid", "2x2",
            "--json", out)  # fmt: skip
    figures = {f["name"]: f["value"] for f in json.loads(out.read_text())}
    size = {name.split(":")[0]: value for name, value in figures.items() if "bytes" in name}
    kept = {name.split(":")[0]: value for name, value in figures.items() if "energy kept on" in name}
    assert size["float16"] > size["int8"] > size["int4"] > size["int3"]
    assert kept["float16"] == pytest.approx(100) and kept["int4"] == pytest.approx(100)
    bases = [kept[name] for name in ("int8, 8 dims", "int8, 4 dims", "int8, 2 dims")]
    assert 100 > bases[0] > bases[1] > bases[2] > 0


def test_joining_is_measured_in_the_form_of_every_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(join, "QUICK", join.Setup(clips=64, shards=20, maps=(2, 2, 7, 7, 256), size=32, runs=2))
    monkeypatch.setattr(resident, "RANKS", (2,))
    monkeypatch.setattr(resident, "WORKERS", (1,))
    command("bench", "join", "--quick", "--json", tmp_path / "j.json")
    figures = json.loads((tmp_path / "j.json").read_text())
    assert all(set(f) == FORM and f["value"] > 0 for f in figures if "memory" not in f["name"])
    named = {f["name"]: f for f in figures}
    assert named["400 logits, on disk"]["ok"] is True  # a size, not a speed


def test_a_goal_is_held_against_the_median():
    assert median_of([1.0, 5.0, 2.0]) == (2.0, np.percentile([1, 5, 2], 75) - np.percentile([1, 5, 2], 25))
    assert at_most("x", [1.0, 2.0, 9.0], "s", 2).ok is True
    assert at_most("x", [1.0, 3.0, 9.0], "s", 2).ok is False
