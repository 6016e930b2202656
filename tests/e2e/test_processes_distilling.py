"""Two processes: projectors, class maps and averaged weights under DDP, and statistics that ranks estimate together."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import torch

from cache.group import load_manifest
from stages.config.file import load_config
from stages.models.checkpoints import load_model
from stages.remote.url_path import UrlPath
from stages.runtime.distributed import Ranks
from stages.student.config import TrainConfig
from stages.student.state import shared_out
from tests.runs import POLICY, QUICK, rows_of

WIDE = "model.args={channels: [8, 16, 16, 24], layers: [1, 1, 1, 1], output_stride: 8}"


def options(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def test_two_processes_equal_one_that_accumulates(zygote, data, cached, tmp_path):
    """DDP over gloo: each rank takes every other micro-batch. The projector and the classifier, used twice, are averaged over
    them; so it is in a cohort."""
    common = options(f"data.train={data.train}", f"data.cache={cached}", *QUICK, "size=16", WIDE, "model.dropout=0",
                     "losses.feature_mse=5", "losses.logit_map_kl=0.5", "losses.temperature=2", "ema=0.9", "losses.dist=1",
                     "losses.feature_nmse={start: 2, end: 0}", "losses.random_label=true", "optim.clip_grad=1.0",
                     "schedule.epochs=1")  # fmt: skip
    common += options("students={wide: {}, other: {size: 24, seed: 1, losses: {logit_map_kl: 0}}}")
    one, two = tmp_path / "one", tmp_path / "two"
    zygote.run(["train-student", *common, *options(f"output={one}", "accumulate=2")])
    zygote.run_ranks(["train-student", *common, *options(f"output={two}")], world=2)
    for name in ("wide", "other"):
        losses = [[row["loss"] for row in rows_of(folder / name)] for folder in (two, one)]
        rates = [[(row["step"], row["lr"]) for row in rows_of(folder / name)] for folder in (two, one)]
        assert rates[0] == rates[1]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        ours, theirs = (torch.load(p / name / "last.pt", weights_only=True) for p in (two, one))
        for part in ("adapter", "ema", "model"):
            for key, value in theirs[part].items():
                if "running" not in key and "tracked" not in key:  # batch statistics are each rank's own
                    assert np.allclose(ours[part][key], value, rtol=2e-3, atol=1e-4), key


def test_one_that_fails_on_a_rank_does_not_stop_the_others(zygote, data, cached, tmp_path):
    """A loss that is not finite, and a disk that only rank 0 writes to: both ranks take the student out, and no other."""
    common = options(f"data.train={data.train}", f"data.val={data.val}", f"data.cache={cached}", *QUICK, "size=16",
                     "losses.feature_mse=5", "schedule.epochs=1", "log_every=4", "checkpoint_every=3")  # fmt: skip
    fine = "wide: {size: 20, optim: {clip_grad: 1.0}}, disk: {}, other: {seed: 1, ema: 0.9}"
    bad = "bad: {optim: {name: sgd, lr: 1.0e+30, clip_grad: 5.0}}"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    zygote.run_ranks(["train-student", *common, *options(f"output={whole}", f"students={{{fine}}}")], world=2)
    (cut / "disk" / ".last.pt.partial").mkdir(parents=True)  # in the way of its first checkpoint
    shutil.copy(whole / "disk" / "config.yaml", cut / "disk")
    command = ["train-student", *common, *options(f"output={cut}", f"students={{{bad}, {fine}}}"), "--resume"]
    said = " ".join(zygote.run_ranks(command, world=2, expect=1).split())
    assert "2 of 4 students failed, all others are finished" in said and "Is a directory" in said
    assert re.search(r"cut/bad: .*not finite at step", said)
    for name in ("wide", "other"):
        for kind in ("train", "val"):
            assert rows_of(cut / name, kind) == rows_of(whole / name, kind)
        ours, theirs = (load_model(f / name / "last.safetensors")[0].state_dict() for f in (cut, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {p.parent.name for p in cut.glob("*/result.json")} == {"wide", "other"}


def test_two_processes_sweep_cohort_after_cohort(zygote, s3, data, cached):
    """The cohort after one with a failure is trained, too; all are scored together, and rank 0 writes, here at a URL."""
    out = UrlPath(s3.bucket) / "ranks" / "sweep"
    (out.parent.parent / "there").write_bytes(b"")  # the server makes a bucket at its first object
    common = options(f"data.train={data.train}", f"data.val={data.val}", f"data.cache={cached}", *QUICK, "size=16",
                     "losses.logit_kl=1", "schedule.epochs=1", f"output={out}")  # fmt: skip
    fine, bad = "good: {}, other: {batch_size: 8}", "bad: {optim: {name: sgd, lr: 1.0e+30}}"
    command = ["sweep", *common, "--test", data.val]
    said = zygote.run_ranks([*command, *options(f"students={{{bad}, {fine}}}")], world=2, expect=1, **s3.environment)
    assert "1 of 3 students failed" in said and "run it again: what is done stays" in said
    result = json.loads((out / "sweep.json").read_bytes())
    assert set(result["students"]) == {"good", "other"} and set(result["failed"]) == {"bad"}
    assert result["cost"]["decode_passes"] == 2 and result["students"]["good"]["clips_seen"] == 6 * 32
    assert [command.said().count("written: ") for command in zygote.commands[-2:]] == [1, 0]
    assert all((out / name / "test.json").is_file() for name in ("good", "other"))
    said = zygote.run([*command, *options(f"students={{{fine}}}")], **s3.environment)  # in one process: all is done
    again = json.loads((out / "sweep.json").read_bytes())
    assert again["students"] == result["students"] and again["failed"] == {}
    assert "finished already" not in said and "best and worst" not in said  # nothing is trained or scored


def test_two_processes_estimate_statistics_together(zygote, data, teacher, tmp_path):
    common = options(f"data={data.train}", f"teacher.checkpoint={teacher}", f"policy={POLICY}", "loader.workers=1",
                     "views=1", "teacher.bn=recalibrate", "targets.features=null")  # fmt: skip
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    zygote.run(["cache-teacher", *common, *options(f"output={one}")])
    zygote.run_ranks(["cache-teacher", *common, *options(f"output={two}")], world=2)
    ours, theirs = (load_model(p / ".teacher.safetensors")[0].state_dict() for p in (two, one))
    assert all(np.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6) for name in theirs)
    assert load_manifest(two).finalised == load_manifest(one).finalised == 1


def test_a_run_goes_on_by_another_number_of_processes_and_refuses_another_number_of_clips_a_step(
    zygote, data, cached, tmp_path
):
    changes = options(f"data.train={data.train}", f"data.cache={cached}", *QUICK, "size=16", "losses.feature_mse=5",
                      "model.dropout=0", "schedule.epochs=1", "checkpoint_every=3", "batch_size=8")  # fmt: skip
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    zygote.run(["train-student", *changes, *options(f"output={whole}", "accumulate=2")])
    running = zygote.start(["train-student", *changes, *options(f"output={moved}", "accumulate=2")])
    while len(rows_of(moved)) < 5 and not running.status.exists():
        time.sleep(0.01)
    running.kill()
    running.wait()
    step = torch.load(moved / "last.pt", weights_only=True)["step"]
    refused = zygote.run(["train-student", *changes, *options(f"output={moved}", "accumulate=3"), "--resume"], expect=1)
    said = " ".join(refused.split())
    assert "1 processes × accumulate 2 = 2 micro-batches, this run has 1 × 3 = 3: set accumulate=2" in said
    assert load_config(TrainConfig, moved / "config.yaml").accumulate == 2  # nothing is changed by what is refused
    said = zygote.run_ranks(["train-student", *changes, *options(f"output={moved}"), "--resume"], world=2)
    assert "is of 1 processes, this run has 2" in " ".join(said.split())
    ours, theirs = rows_of(moved), rows_of(whole)
    assert ours[:step] == theirs[:step] and len(ours) == len(theirs) > step
    # BatchNorm's batches and the clips' order are the same, so the losses are those of one process.
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-3)


def test_what_ranks_have_of_their_own_is_shared_out_so_that_its_means_stay():
    def of_rank(value: float, failed: int) -> dict:
        mean = torch.full((2,), value)
        return {"buffers": {"bn.running_mean": mean, "bn.num_batches_tracked": torch.tensor(7)}, "failed": failed,
                "sums": {"loss": torch.tensor(6 * value)}, "summed": 6}  # fmt: skip

    old, cpu = [of_rank(1.0, 2), of_rank(3.0, 0)], torch.device("cpu")
    new = [shared_out(old, Ranks(rank, 4, cpu)) for rank in range(4)]
    assert sum(part["failed"] for part in new) == 2
    assert all(part["sums"]["loss"] / part["summed"] == 2.0 for part in new)  # the mean over both
    assert sum(part["summed"] for part in new) == 12
    assert torch.equal(new[3]["buffers"]["bn.running_mean"], torch.full((2,), 2.0))
    assert new[0]["buffers"]["bn.num_batches_tracked"] == 7
