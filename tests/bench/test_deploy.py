"""`bench deploy` on small nets: what it says, not how much of it."""

import json
import math

import pytest

from stages.bench import deploy, deploy_runs
from stages.bench.deploy_runs import EAGER, FLOAT, INT8, Cell, Net
from stages.bench.videos import Kind
from tests.models.small_models import RESNET, config
from tests.runs import command

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


def test_latencies_are_held_against_multiply_adds(tmp_path, monkeypatch):
    large, small = Net("net", 48), Net("net", 16)
    cells = tuple(
        Cell(net, runtime) for net, runtime in ((large, EAGER), (small, EAGER), (small, FLOAT), (small, INT8))
    )
    nets = {"net": config("tsn", "resnet18", RESNET, num_frames=4)}
    monkeypatch.setattr(deploy, "QUICK", deploy.Setup(cells, ((large, small),), nets, seconds=1, runs=2))
    monkeypatch.setattr(deploy, "SMALL", (Kind(64, 48, 6),))
    monkeypatch.setattr(deploy_runs, "SHORTEST", 0.01)
    said = command("bench", "deploy", "--quick", "--folder", tmp_path, "--json", tmp_path / "d.json")
    figures = {figure["name"]: figure for figure in json.loads((tmp_path / "d.json").read_text())}
    assert all(math.isfinite(figure["value"]) and figure["value"] > 0 for figure in figures.values())
    for net, runtime in cells:
        assert all(figures[f"{net}, {runtime}, {on}"]["unit"] == "ms a clip" for on in ("one core", "all cores"))
    ratio = figures["net at 48 ÷ net at 16, torch, one core: of the ratio of GFLOPs"]
    gflops = [figures[f"net at {size}: GFLOPs (multiply-adds) of a clip"]["value"] for size in (48, 16)]
    latency = figures["net at 48 ÷ net at 16, torch, one core: latency"]["value"]
    assert ratio["goal"] == ">= 0.8" and ratio["ok"] == (ratio["value"] >= 0.8)
    assert ratio["value"] == pytest.approx(latency / (gflops[0] / gflops[1]))
    assert not any("÷" in name and "48" in name and "onnxruntime" in name for name in figures)  # which runs only one
    assert "onnx int8" in said and "net at 16, one core: float ÷ int8, latency" in figures
