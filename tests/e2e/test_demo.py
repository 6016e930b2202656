"""The demo, made small, through the command line: every stage, the files it promises, and a rerun that resumes."""

import json

import pytest
from click.testing import CliRunner

from pipeline import cli

SMALL = {
    "clips": {"train": 240, "val": 80, "test": 80},
    "cache": {"views": 2},
    **{
        kind: {"schedule": {"epochs": 2, "val_every": 1, "warmup_epochs": 0.2}}
        for kind in ("teacher", "baseline", "distilled")
    },
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "out"
    small = [part for key, value in SMALL.items() for part in ("--set", f"{key}={json.dumps(value)}")]

    def run(*more):
        done = CliRunner().invoke(cli, ["demo", "--output", str(output), *small, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads((output / "summary.json").read_text())

    return output, run, run()


def test_summary(demo):
    output, _, summary = demo
    assert set(summary) == {"teacher", "baseline", "distilled", "ledger", "wall_s", "peak_rss_mb", "seeds"}
    for kind in ("teacher", "baseline", "distilled"):
        assert set(summary[kind]) == {"top1", "top1_std", "per_seed", "gflops"}
        assert len(summary[kind]["per_seed"]) == 1 and 0 <= summary[kind]["top1"] <= 100
    assert summary["distilled"]["gflops"] == summary["baseline"]["gflops"] < summary["teacher"]["gflops"] / 3
    ledger = summary["ledger"]
    assert ledger["teacher_clip_views"] == 2 * 240 and ledger["in_loop_clip_views"] == 2 * 240
    assert ledger["cache_bytes"] > 10_000 and summary["peak_rss_mb"] > 100
    assert summary["wall_s"] == pytest.approx(sum(ledger["seconds"].values()))
    for picture in ("curves.png", "views.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")


def test_a_rerun_resumes_and_more_seeds_are_added(demo):
    output, run, summary = demo
    checkpoint = (output / "runs" / "teacher-0" / "last.pt").stat().st_mtime_ns
    again = run("--seeds", "2")
    assert (output / "runs" / "teacher-0" / "last.pt").stat().st_mtime_ns == checkpoint
    assert again["distilled"]["per_seed"][0] == summary["distilled"]["per_seed"][0]
    assert len(again["distilled"]["per_seed"]) == 2 and again["seeds"] == 2
    assert again["ledger"]["teacher_clip_views"] == 480 and again["ledger"]["in_loop_clip_views"] == 960
