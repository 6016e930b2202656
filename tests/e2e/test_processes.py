"""Stages killed at random moments while at work, and run again: nothing is lost, nothing is done twice, nothing differs."""

import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from stages.models.checkpoints import load_model
from stages.shards.dataset import open_dataset
from tests.runs import POLICY, QUICK, committed_views, rows_of, tree
from tests.zygote import Zygote


def options(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def test_cache_teacher_killed_at_random_moments(zygote, data, teacher, tmp_path):
    def command(output):
        fixed = options(f"output={output}", f"data={data.train}", f"teacher.checkpoint={teacher}", f"policy={POLICY}")
        return ["cache-teacher", *fixed, *options("views=2", "loader.workers=1", "teacher.batch_size=8")]

    shards = open_dataset(data.train).shards
    started = time.monotonic()
    zygote.run(command(tmp_path / "whole.zarr"))
    duration = time.monotonic() - started
    whole, chance = tree(tmp_path / "whole.zarr"), random.Random(0)
    partly = 0
    for kill in range(2):
        output = tmp_path / f"{kill}.zarr"
        running = zygote.start(command(output))
        if kill < 1:
            time.sleep(duration * chance.uniform(0.2, 1.0))
        else:  # a moment after the first commit
            while not running.status.exists() and not (output.exists() and committed_views(output, shards[0].name)):
                time.sleep(0.001)
        running.kill()
        running.wait()
        done = sum(e.clips * committed_views(output, e.name) for e in shards) if output.exists() else 0
        partly += 0 < done < 400
        said = zygote.run(command(output))
        assert f"computed {400 - done} clip·views" in re.sub(r"\s+", " ", said)
        assert tree(output) == whole
    assert partly >= 1, "no kill fell between two commits"


def test_train_student_killed_at_random_moments(zygote, data, cached, tmp_path):
    def command(output, *flags):
        fixed = options(f"output={output}", f"data.train={data.train}", f"data.val={data.val}", f"data.cache={cached}")
        losses = options("losses.feature_mse=5", "losses.logit_kl=1", "size=16")
        return ["train-student", *fixed, *options(*QUICK), *losses, *options("schedule.epochs=4", "schedule.val_every=2",
                "checkpoint_every=5", "ema=0.9"), *flags]  # fmt: skip

    zygote.run(command(tmp_path / "whole"))
    whole, output, chance = rows_of(tmp_path / "whole"), tmp_path / "killed", random.Random(1)
    assert len(whole) == 48
    saved = 0
    for _ in range(3):
        running = zygote.start(command(output, *(["--resume"] if (output / "config.yaml").exists() else [])))
        goal, end = saved + chance.randrange(2, 11), time.monotonic() + 60
        while len(rows_of(output)) < goal and running.status.exists() is False and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        running.kill()
        running.wait()
        if (output / "last.pt").exists():
            step = torch.load(output / "last.pt", weights_only=True)["step"]
            assert step >= saved and len(rows_of(output)) - step <= 12  # what is redone: since the last checkpoint
            saved = step
    assert 5 <= saved < 48
    zygote.run(command(output, "--resume"))
    assert rows_of(output) == whole
    assert rows_of(output, "val") == rows_of(tmp_path / "whole", "val")
    ours, theirs = (load_model(p / "last.safetensors")[0].state_dict() for p in (output, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("number", "group", "status"), [(signal.SIGTERM, False, 143), (signal.SIGTERM, True, 143),
                                                         (signal.SIGINT, True, 130)])  # a group: its workers, too  # fmt: skip
def test_a_signal_saves_and_says_how_to_go_on(zygote, data, tmp_path, number, group, status):
    output = tmp_path / "run"
    command = ["train-student", *options(f"output={output}", f"data.train={data.train}", *QUICK, "size=16",
               "schedule.epochs=200", "checkpoint_every=100000")]  # fmt: skip
    running = zygote.start(command)
    while len(rows_of(output)) < 5:
        assert not running.status.exists(), running.said()
        time.sleep(0.01)
    running.kill(number, group=group)
    assert running.wait() == status
    said = re.sub(r"\s+", " ", running.said())
    step = int(re.search(r"stopped at step (\d+) of 2400", said).group(1))
    assert "--resume" in said and step == len(rows_of(output))
    assert torch.load(output / "last.pt", weights_only=True)["step"] == step


def test_two_processes_write_the_same_cache(zygote, data, teacher, cached, tmp_path):
    command = options(
        f"data={data.train}", f"teacher.checkpoint={teacher}", f"policy={POLICY}", "loader.workers=1", "views=2"
    )
    zygote.run(["cache-teacher", *command, *options(f"output={tmp_path / 'one.zarr'}")])
    zygote.run_ranks(["cache-teacher", *command, *options(f"output={tmp_path / 'two.zarr'}")], world=2)
    assert tree(tmp_path / "two.zarr") == tree(tmp_path / "one.zarr")


def test_two_processes_pack_what_one_does_and_a_killed_run_goes_on(zygote, data, cached, tmp_path):
    def command(name):
        fixed = ["pack", "--data", data.train, "--cache", cached, "--size", "16", "--output", tmp_path / name]
        return [*fixed, *options("loader.workers=1")]

    zygote.run(command("one"))
    zygote.run_ranks(command("two"), world=2)
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    running = zygote.start(command("cut"))
    while not (tmp_path / "cut" / "000000.tar.rows.json").exists():
        assert not running.status.exists(), running.said()
        time.sleep(0.002)
    running.kill()  # its worker, too
    running.wait()
    assert re.search(r"packed (0|40|120) clips", re.sub(r"\s+", " ", zygote.run(command("cut"))))
    assert tree(tmp_path / "cut") == tree(tmp_path / "one")


def test_two_processes_resume_as_they_were(zygote, data, cached, tmp_path):
    """Both ranks killed in mid-epoch: generators, sums and batch statistics are each rank's own, and all come back."""
    common = options(f"data.train={data.train}", f"data.cache={cached}", *QUICK, "size=16", "losses.logit_kl=1",
                     "schedule.epochs=3", "checkpoint_every=4")  # fmt: skip
    zygote.run_ranks(["train-student", *common, *options(f"output={tmp_path / 'whole'}")], world=2)
    cut = [*common, *options(f"output={tmp_path / 'cut'}")]
    killer = threading.Thread(target=_kill_after, args=(zygote, tmp_path / "cut", 10))
    killer.start()
    with pytest.raises(AssertionError):
        zygote.run_ranks(["train-student", *cut], world=2)
    killer.join()
    zygote.run_ranks(["train-student", *cut, "--resume"], world=2)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def _kill_after(zygote: Zygote, output: Path, rows: int) -> None:
    """SIGKILL for every command at work once `output` has so many rows."""
    end = time.monotonic() + 60
    while len(rows_of(output)) < rows and time.monotonic() < end:
        time.sleep(0.005)
    zygote.kill_all()
