"""A run whose output is a URL: it is the local run, goes on on a fresh machine, and mixes with no other run."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from cache.errors import StoreError
from stages.models.checkpoints import load_model
from stages.remote.outputs import working_folder
from stages.remote.url_path import Changed, UrlPath
from stages.student import run_upload
from stages.student.run_upload import RunUpload
from stages.student.state import load_state
from tests.remote.server import Proxy
from tests.runs import QUICK, rows_of
from tests.zygote import Command

FILES = {"config.yaml", "metrics.jsonl", "last.pt", "best.safetensors", "last.safetensors", "result.json"}


def options(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def start(zygote, s3, data, tmp_path_factory):
    """Starts a training into an output, on a machine that is no more than a temporary folder."""
    home = tmp_path_factory.mktemp("machines")

    def start(output, *changes: str, machine: str = "a", flags: tuple = (), **environment: str) -> Command:
        fixed = options(f"output={output}", f"data.train={data.train}", f"data.val={data.val}", *QUICK, "size=16",
                        "model.dropout=0.1", "checkpoint_every=3", *changes)  # fmt: skip
        (home / machine).mkdir(exist_ok=True)
        return zygote.start(
            ["train-student", *fixed, *flags], TMPDIR=str(home / machine), **s3.environment | environment
        )

    start.home = home
    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> Path:
    """The local run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder).wait() == 0
    return folder


@pytest.fixture
def url(s3, request) -> UrlPath:
    (UrlPath(s3.bucket) / "there").write_bytes(b"")  # the server makes a bucket at its first object
    return UrlPath(s3.bucket) / "runs" / request.node.name


def fetched(url: UrlPath, folder: Path) -> Path:
    for name in url.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((url / name).read_bytes())
    return folder


def check_same(url: UrlPath, whole: Path, folder: Path) -> None:
    fetched(url, folder)
    for kind in ("train", "val"):
        assert rows_of(folder, kind) == rows_of(whole, kind)
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = (load_model(p / name)[0].state_dict() for p in (folder, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    results = [json.loads((p / "result.json").read_text()) for p in (folder, whole)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}


def said(command: Command) -> str:
    return re.sub(r"\s+", " ", command.said())


def wait_for(condition, command: Command, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert not command.status.exists() and time.monotonic() < end, command.said()
        time.sleep(0.02)


def test_it_is_the_local_run_and_leaves_nothing_on_the_machine(start, url, whole, tmp_path):
    run = start(url)
    assert run.wait() == 0, run.said()
    check_same(url, whole, tmp_path / "run")
    assert {name for name in url.files() if "/" not in name} == FILES
    assert any(name.startswith("tensorboard/events") for name in url.files())
    assert f"output: {url}\n" in (tmp_path / "run/config.yaml").read_text()
    assert not list(start.home.rglob("*.pt")) and not list(start.home.rglob("*.json"))
    again, resumed = start(url), start(url, flags=("--resume",), machine="b")
    assert again.wait() == 1 and f"{url} holds a run already: go on with it by --resume" in said(again)
    assert resumed.wait() == 0 and f"{url}: finished already" in said(resumed)
    other = start(url, "optim.lr=0.1", flags=("--resume",))
    assert other.wait() == 1 and f"{url} holds a run of another config: optim.lr" in said(other)


def test_killed_and_resumed_on_a_fresh_machine(start, url, whole, tmp_path):
    run = start(url, "schedule.epochs=40")  # it would take long
    wait_for((url / "last.pt").is_file, run)
    run.kill()
    run.wait()
    assert load_at(url, tmp_path)["step"] <= len(rows_of(fetched(url, tmp_path / "killed")))
    replaced = start(url, flags=("--overwrite",), machine="fresh")  # deletes what is there
    wait_for(lambda: working_of(start, "fresh", url).joinpath("last.pt").exists(), replaced)
    wait_for((url / "last.pt").is_file, replaced)
    replaced.kill()
    replaced.wait()
    resumed = start(url, flags=("--resume",), machine="other")
    assert resumed.wait() == 0, resumed.said()
    check_same(url, whole, tmp_path / "run")


def load_at(url: UrlPath, folder: Path) -> dict:
    (folder / "last.pt").write_bytes((url / "last.pt").read_bytes())
    return load_state(folder / "last.pt")


def working_of(start, machine: str, url: UrlPath) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(start.home / machine))
        return working_folder(url)
