"""`bench decode` and `bench stage1`, on an input that is small; and the videos that they are measured on."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from stages.bench import clocks, decode, device_peak, stage1
from stages.bench.figures import at_least, profiled
from stages.bench.stage1_answers import Answers
from stages.bench.stage1_runs import TINY
from stages.bench.videos import Kind, make_videos
from stages.video.decode import decode_frames, probe
from stages.video.decord_decode import decord
from tests.runs import command

SMALL = Kind(64, 48, 6)
FORM = {"name", "value", "unit", "spread", "goal", "ok"}
needs_decord = pytest.mark.skipif(decord is None, reason="decord has no wheel for this platform")


@pytest.fixture(autouse=True)
def small(monkeypatch, few_processes):
    monkeypatch.setattr(decode, "QUICK", decode.Setup((SMALL,), views=2, seconds=1, runs=2))
    sizes = {"clips": 2, "batch_size": 1, "few": 2, "many": 2, "times": (1, 2), "sizes": (1,), "seconds": 1, "runs": 2}
    monkeypatch.setattr(stage1, "QUICK", replace(stage1.FULL, model=TINY, size=32, **sizes))
    monkeypatch.setattr(stage1, "SMALL", (SMALL,))
    monkeypatch.setattr(device_peak, "SIDE", {"cpu": 64, "cuda": 64})


def figures(out):
    found = json.loads(out.read_text())
    assert found and all(set(figure) == FORM and math.isfinite(figure["value"]) for figure in found)
    return {figure["name"]: figure for figure in found}


def test_videos_are_drawn_from_their_number_with_key_frames_where_they_are_asked_for(tmp_path):
    folder = make_videos(tmp_path / "a", SMALL, 3, seconds=1)
    videos = sorted(folder.rglob("*.mp4"))
    assert [p.relative_to(folder).as_posix() for p in videos] == ["a/0000.mp4", "a/0002.mp4", "b/0001.mp4"]
    first = videos[0].read_bytes()
    info = probe(first)
    assert (info.frames, info.width, info.height, info.fps) == (30, 64, 48, 30)
    assert len({p.read_bytes() for p in videos}) == 3
    stamps = {p: p.stat().st_mtime_ns for p in videos}
    make_videos(tmp_path / "a", SMALL, 3, seconds=1)
    assert {p: p.stat().st_mtime_ns for p in videos} == stamps
    again = next(make_videos(tmp_path / "b", SMALL, 1, seconds=1).rglob("*.mp4"))
    frames = [decode_frames(data, np.arange(30), info.decoder)[0] for data in (first, again.read_bytes())]
    assert (frames[0] == frames[1]).all() and (frames[0][0] != frames[0][29]).mean() > 0.5


@needs_decord
def test_decoding_is_measured_by_kind(tmp_path):
    command("bench", "decode", "--quick", "--folder", tmp_path, "--json", tmp_path / "d.json")
    parts = ["8 frames, decord", "8 frames, reskd", "2 views of 8 frames, decord", "2 views of 8 frames, reskd",
             "rendering 8 frames at 224", "rendering 8 frames at 112"]  # fmt: skip
    assert list(figures(tmp_path / "d.json")) == [f"64x48, GOP 6: {part}" for part in parts]


@needs_decord
def test_stage_one_is_held_against_its_bound(tmp_path):
    out, trace = tmp_path / "s.json", tmp_path / "t.json"
    command("bench", "stage1", "--quick", "--folder", tmp_path, "--json", out, "--profile", trace)
    found = figures(out)
    assert found["stage one ÷ its bound"]["goal"] == ">= 0.9"
    rates = {name: f["value"] for name, f in found.items() if f["unit"] == "clip·views/s"}
    assert len(rates) == 4 and rates["their bound"] < rates["the teacher alone"]
    assert found["time a clip·view, 2 times the clips ÷ once"]["goal"] == "<= 1.1"
    assert found["peak memory, 2 clips"]["value"] > 100
    assert json.loads(trace.read_text())["traceEvents"]


@needs_decord
def test_everything_but_the_forward_is_measured_with_answers_that_are_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(stage1, "QUICK_ANSWERS", Answers(2, 2, 2, (4, 2, 2, 16), 32, 1, 4))
    out = tmp_path / "a.json"
    command("bench", "stage1", "--answers", "max", "--quick", "--folder", tmp_path, "--json", out)
    found = {name: (f["value"], f["goal"]) for name, f in figures(out).items()}
    host, codes = (
        found["encode and write a map of 4×2×2×16 in int4, its numbers on the host"],
        found["the same, codes handed in as from a device"],
    )
    assert (host[1], codes[1]) == ("<= 4", "<= 2") and min(host[0], codes[0]) > 0
    assert found["bytes that cross to the host ÷ bytes stored, before zstd"][0] == pytest.approx(1, abs=0.01)
    assert found["the same ÷ the bound of its two halves"][1] == ">= 0.9"
    decode = found["decode and render a clip in 2 views at 32"][0]
    needed = found["cores for 1000 clip·views/s (ResNet-50 on an H100)"][0]
    assert needed == pytest.approx(codes[0] + decode / 2)


def test_clocks_count_what_is_computed_and_what_is_idle():
    began = clocks.core_seconds()
    taken = clocks.cpu_seconds(lambda: sum(range(1_000_000)), runs=3)
    assert len(taken) == 3 and all(t > 0 for t in taken)
    assert clocks.core_seconds() - began >= sum(taken) - 0.02


def test_goals_from_below_and_no_trace_without_a_name():
    assert at_least("x", [1.0, 2.0, 9.0], "", 2).ok is True
    assert at_least("x", [1.0, 1.5, 9.0], "", 2).ok is False
    with profiled(None):
        pass
