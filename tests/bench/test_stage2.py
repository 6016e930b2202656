"""`bench stage2`, `pack`, `cohort`, `sweep` and `growth`, on an input that is small: what they say, not how much of it."""

import json
import math
from dataclasses import replace

import pytest

from stages.bench import cohort, device_peak, growth, packing, stage2, sweeping
from stages.bench.students import DEMO
from stages.bench.videos import Kind
from tests.runs import command

SMALL = Kind(64, 48, 6)
FORM = {"name", "value", "unit", "spread", "goal", "ok"}


@pytest.fixture(autouse=True)
def small(monkeypatch, few_processes):
    for module in (stage2, packing, cohort, sweeping, growth):
        if hasattr(module, "SMALL"):
            monkeypatch.setattr(module, "SMALL", (SMALL, SMALL))
    monkeypatch.setattr(device_peak, "SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr("stages.sweep.sweep.cores", lambda: 1)  # a second process imports everything once more
    brief = {"seconds": 1, "runs": 1, "clips": 4}
    monkeypatch.setattr(stage2, "QUICK", stage2.Setup((("net", DEMO, 16, 4),), times=2, **brief))
    monkeypatch.setattr(packing, "QUICK", packing.Setup((SMALL,), size=16, **brief))
    monkeypatch.setattr(cohort, "QUICK", cohort.Setup(size=16, students=2, times=2, epochs=1, **brief))
    sweep = {"size": 16, "teacher_size": 32, "students": 2, "epochs": 2, "views": 2, "times": 2}
    monkeypatch.setattr(sweeping, "QUICK", sweeping.Setup(**sweep, **brief))
    grown = {"times": (1, 2), "memory": (1, 2)}
    monkeypatch.setattr(growth, "QUICK", replace(growth.FULL, **(brief | grown | {"clips": 8})))


def figures(tmp_path, *arguments):
    out = tmp_path / "out.json"
    command("bench", *arguments, "--quick", "--folder", tmp_path / "videos", "--json", out)
    found = json.loads(out.read_text())
    assert found and all(set(figure) == FORM and math.isfinite(figure["value"]) for figure in found)
    return {figure["name"]: figure for figure in found}


def test_what_distillation_adds(tmp_path):
    found = figures(tmp_path, "stage2", "--profile", tmp_path / "trace.json")
    assert found["net: logits adds"]["goal"] == "<= 0.1"
    assert found["net: logits + 16 KB of features adds"]["goal"] == "<= 0.3"
    for name in ("net: step", "net: input from a pack of crops", "net: stage two from it ÷ the step alone"):
        assert found[name]["value"] > 0
    assert found["net: distilled ÷ plain training, clips a second"]["goal"] == ">= 0.97"
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_pack_against_its_videos(tmp_path):
    found = figures(tmp_path, "pack")
    for pack in ("a pack of all frames", "a pack of crops"):
        taken = [found[f"64x48, GOP 6: a student's input from {name}"]["value"] for name in ("the videos", pack)]
        assert found[f"64x48, GOP 6: the videos ÷ {pack}"]["value"] == pytest.approx(taken[0] / taken[1])
    assert sum("35 dB" in name for name in found) == 2


def test_a_cohort_against_single_runs(tmp_path):
    found = figures(tmp_path, "cohort")
    for source in ("the videos", "the pack"):
        ratio = found[f"from {source}: a cohort of 2 ÷ 2 single runs"]["value"]
        (bound,) = (f["value"] for name, f in found.items() if name.startswith(f"from {source}: bound"))
        assert 0.5 < bound < 1
        assert found[f"from {source}: cohort ÷ bound"]["value"] == pytest.approx(ratio / bound)


def test_a_sweep_against_the_teacher_in_the_loop(tmp_path):
    found = figures(tmp_path, "sweep")
    part = {name: found[f"part {name}"]["value"] for name in ("d", "D", "k", "t", "s", "p")}
    loop = 2 * 2 * (part["d"] + part["t"] + part["s"])
    ours = part["D"] + 2 * part["t"] + part["k"] + 2 * part["p"] + 4 * part["s"]
    assert found["its bound"]["value"] == pytest.approx(loop / ours)
    assert found["÷ its bound"]["goal"] == ">= 0.9"


def test_growth_is_told_and_drawn(tmp_path):
    found = figures(tmp_path, "growth")
    for stage in growth.STAGES:
        assert found[f"{stage}: 2 times the clips ÷ once, a clip"]["goal"] == "<= 1.1"
    assert found["a student's peak memory, 16 clips"]["value"] > 100
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
