"""The demo, made small, through the command line: every stage, the files it promises, and a rerun that resumes."""

import csv
import importlib.util
import json
import multiprocessing
from pathlib import Path

import pytest

from stages.config.file import load_config
from stages.demo.config import DemoConfig
from stages.demo.runs import KINDS, cache_config, run_config, run_folders
from stages.runtime import beside
from stages.shards.dataset import open_dataset
from tests.runs import command, sets
from tests.zygote import GPUS

DEMO = Path("configs/demo/demo.yaml")
NETS = ("teacher", "baseline", "distilled")
ALONE = {"loader": {"workers": 0}}  # a fork of a process with torch in it takes longer than these clips
ONCE = {"loader": {"workers": 0, "resident": True}}  # and clips are decoded once
BRIEF = {"schedule": {"epochs": 1, "val_every": 1, "warmup_epochs": 0.2}, **ONCE}
SMALL = {
    "side_by_side": False,  # a second process imports everything once more
    "clips": {"train": 80, "val": 40, "test": 40},
    "cache": {"views": 2, **ALONE},
    **{net: {"schedule": {"epochs": 2, "val_every": 1, "warmup_epochs": 0.2}, **ONCE} for net in NETS},
}


@pytest.fixture(scope="module", autouse=True)
def without_onnx():
    """As where the extra `export` is not installed. The README's commands are tested with it, and so is `export`."""
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else find(name, *rest))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "out"

    def run(*more):
        command("demo", "--output", output, *sets(SMALL), *more)
        return json.loads((output / "summary.json").read_text())

    return output, run, run()


def test_summary(demo):
    output, _, summary = demo
    of_all = {"cost", "wall_s", "peak_rss_mb", "seeds", "epochs_times"}
    assert set(summary) == {"teacher", "baseline", "distilled"} | of_all
    for kind in ("teacher", "baseline", "distilled"):
        assert set(summary[kind]) == {"top1", "top1_std", "per_seed", "gflops"}
        assert len(summary[kind]["per_seed"]) == 1 and 0 <= summary[kind]["top1"] <= 100
    assert summary["distilled"]["gflops"] == summary["baseline"]["gflops"] < summary["teacher"]["gflops"] / 3
    cost = summary["cost"]
    assert cost["teacher_clip_views"] == 2 * 80 and cost["in_loop_clip_views"] == 2 * 80
    assert cost["cache_bytes"] > 10_000 and summary["peak_rss_mb"] > 100
    assert summary["wall_s"] == pytest.approx(sum(cost["seconds"].values()))
    for picture in ("curves.png", "views.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")


def test_the_student_is_exported_and_used_and_all_is_on_a_page(demo):
    output, _, summary = demo
    assert (output / "student.pt2").stat().st_size > 10_000 and not (output / "student.onnx").exists()
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    answers = {row["key"]: row for row in csv.DictReader((output / "runs/distilled-0/test.answers.csv").open())}
    videos = [Path(line["video"]) for line in lines]
    assert len({video.parent for video in videos}) == 3
    for line, video in zip(lines, videos, strict=True):  # as evaluate has it
        assert line["label"] == answers[f"{video.parent.name}_{video.stem}"]["answer"]
    page = (output / "report.html").read_text()
    assert "teacher-0" in page and "distilled-0" in page and "<svg" in page
    assert summary["cost"]["seconds"]["export"] > 0


def test_a_rerun_resumes_and_more_seeds_are_added(demo, monkeypatch):
    """The second process is a fork, which has its imports; no fork can use a GPU. test_sweep.py starts a fresh one."""
    if not GPUS:
        monkeypatch.setattr(beside, "get_context", lambda _: multiprocessing.get_context("fork"))
    output, run, summary = demo
    checkpoint = (output / "runs" / "teacher-0" / "last.pt").stat().st_mtime_ns
    (output / "curves.png").unlink()
    (output / "curves.png").mkdir()  # a plot that fails costs no result
    again = run("--seeds", "2", "--set", "side_by_side=true")
    assert "train baseline 1" in again["cost"]["seconds_beside"] and "train baseline 1" not in again["cost"]["seconds"]
    assert list((output / "curves.png").iterdir()) == []
    assert (output / "runs" / "teacher-0" / "last.pt").stat().st_mtime_ns == checkpoint
    assert again["distilled"]["per_seed"][0] == summary["distilled"]["per_seed"][0]
    assert len(again["distilled"]["per_seed"]) == 2 and again["seeds"] == 2
    assert again["cost"]["teacher_clip_views"] == 160 and again["cost"]["in_loop_clip_views"] == 320


def test_students_of_twice_the_epochs_lie_beside_the_others_and_share_the_teacher(tmp_path):
    changes = [f"output={tmp_path}", "seeds=2"]
    once, twice = (load_config(DemoConfig, DEMO, [*changes, f"epochs_times={times}"]) for times in (1, 2))
    assert run_config(once, "teacher", 0) == run_config(twice, "teacher", 0)
    assert cache_config(once, KINDS["distilled"]) == cache_config(twice, KINDS["distilled"])
    for kind in KINDS:
        runs = [[run_config(config, kind, seed) for seed in range(2)] for config in (once, twice)]
        for short, long in zip(*runs, strict=True):
            assert long.output == tmp_path / "x2" / short.output.relative_to(tmp_path)
            assert long.schedule.epochs == 2 * short.schedule.epochs
            assert long.schedule.val_every == 2 * short.schedule.val_every  # as many validations
            same = {"output": None, "schedule": None}
            assert long.model_copy(update=same) == short.model_copy(update=same)
        assert run_folders(twice, kind) == [run.output for run in runs[1]]


@pytest.mark.parametrize("model", ["slowonly", "tsn"])
def test_the_configs_of_other_families_fit_the_same_clips(demo, model):
    """Each family has a demo. These differ from the first in their networks and classes alone; Swin's is run below."""
    output, *_ = demo
    for net in ("teacher", "baseline"):
        data = sets({"data.train": str(output / "data/train"), "data.val": str(output / "data/val")})
        said = command("train-student", "--config", f"configs/demo/{model}/{net}.yaml", "--dry-run", *data)
        assert "clips            80" in said and "steps_per_epoch" in said


def test_clips_without_labels_are_distilled_from_by_a_swin(tmp_path):
    small = {"side_by_side": False, "clips": {"train": 40, "val": 12, "test": 12}, "cache": {"views": 2, **ALONE}}
    net = {**BRIEF, "batch_size": 10, "model": {"args": {"depths": [1, 1]}}}
    small |= dict.fromkeys(NETS, net)
    command("demo", "--model", "swin", "--unlabelled", "--output", tmp_path / "out", *sets(small))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"teacher", "baseline", "distilled", "unlabelled"} < set(summary)
    few, mixed = (open_dataset(tmp_path / "out/data" / name) for name in ("few", "mixed"))
    assert few.classes == mixed.classes == open_dataset(tmp_path / "out/data/train").classes
    assert len(few.classes) == 4  # directions: so small a Swin finds no digits in so few epochs
    assert (tmp_path / "out/student.pt2").exists()
    rows = [row for entry in mixed.shards for row in mixed.rows(entry.name)]
    assert len(rows) == 40 and sum(not row.labels for row in rows) == 30
    assert sum(entry.clips for entry in few.shards) == 10
    results = [
        json.loads((tmp_path / f"out/runs/{kind}-0/result.json").read_text()) for kind in ("distilled", "unlabelled")
    ]
    assert results[0]["steps"] == pytest.approx(results[1]["steps"], abs=8)  # as many, on a quarter of the clips
    assert summary["cost"]["teacher_clip_views"] == 2 * (10 + 40)
