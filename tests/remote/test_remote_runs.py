"""A run whose output is a URL: it is the local run, goes on on a fresh machine, and mixes with no other run."""

import json
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from cache.errors import ReskdError, StoreError
from stages.bench.s3_server import Proxy
from stages.evaluate import evaluate
from stages.models.checkpoints import load_model
from stages.remote.store import Changed, connections
from stages.remote.url_path import UrlPath
from stages.report import report
from stages.report.report import write_report
from stages.runtime.beside import beside
from stages.student import loop, run_upload
from stages.student.run_upload import RunUpload
from stages.student.state import load_state
from stages.sweep import sweep
from stages.sweep.config import load_sweep
from stages.sweep.sweep import run_sweep
from tests.report.folders import text_of
from tests.runs import QUICK, command, rows_of
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
                        "model.dropout=0.1", "schedule.epochs=3", "checkpoint_every=3", *changes)  # fmt: skip
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


def test_a_cohort_is_that_of_local_folders_and_leaves_nothing_on_the_machine(start, url, whole, tmp_path):
    students = "students={same: {}, other: {size: 20}}"
    run = start(url, students)
    assert run.wait() == 0, run.said()
    check_same(url / "same", whole, tmp_path / "same")
    assert {name for name in (url / "other").files() if "/" not in name} == FILES
    assert any(name.startswith("tensorboard/events") for name in (url / "other").files())
    assert f"output: {url}/same\n" in (tmp_path / "same/config.yaml").read_text()
    assert f"pipeline.py report {url}/same {url}/other --output report.html" in said(run)
    refused = {("students={same: {}}",): f"{url}/same holds a run already: go on with it by --resume",
               ("optim.lr=0.1", students, "--resume"): f"{url}/same holds a run of another config: optim.lr"}  # fmt: skip
    for changes, why in refused.items():
        flags = tuple(change for change in changes if change == "--resume")
        again = start(url, *(change for change in changes if change not in flags), flags=flags)
        assert again.wait() == 1 and why in said(again)
    assert not list(start.home.rglob("*.yaml")) and not list(start.home.rglob("*.json"))


def test_killed_and_resumed_on_a_fresh_machine(start, url, whole, tmp_path):
    before = None
    for changes, flags in ((("schedule.epochs=400",), ()), ((), ("--overwrite",))):
        run = start(url, *changes, flags=flags)
        wait_for(lambda: (url / "last.pt").etag_or_none() not in (None, before), run)  # noqa: B023
        run.kill()
        assert run.wait() == -9
        before = (url / "last.pt").etag_or_none()
    assert not (url / "result.json").is_file()
    step = load_state(fetched(url, tmp_path / "killed") / "last.pt")["step"]
    assert 0 < step <= len(rows_of(tmp_path / "killed"))
    resumed = start(url, flags=("--resume",), machine="other")
    assert resumed.wait() == 0, resumed.said()
    check_same(url, whole, tmp_path / "run")


def test_a_local_folder_that_was_cleared_is_fetched_again(url, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("config.yaml", "metrics.jsonl", "last.pt"):
        (url / name).write_bytes(name.encode())
    RunUpload(url).fetch()
    for cleared in ("last.pt", "config.yaml"):
        (RunUpload(url).folder / cleared).unlink()
        again = RunUpload(url)  # its note of what it has put is there
        again.fetch()
        assert (again.folder / cleared).read_bytes() == cleared.encode()


def test_of_two_runs_one_goes_on_and_a_signal_leaves_all_at_the_url(start, url, tmp_path):
    """A machine that was given up is still at work, when another goes on with the run."""
    endless = ("schedule.epochs=400",)
    first = start(url, *endless)
    wait_for((url / "last.pt").is_file, first)
    second = start(url, *endless, flags=("--resume",), machine="other")
    while not first.status.exists() and not second.status.exists():
        time.sleep(0.02)
    loser, winner = (first, second) if first.status.exists() else (second, first)
    assert loser.wait() == 1, loser.said()
    assert f"{url}/" in loser.said().replace("\n", "") and "another run" in said(loser), loser.said()
    winner.kill(signal.SIGTERM, group=False)
    started = time.monotonic()
    assert winner.wait() == 143 and time.monotonic() - started < 30, winner.said()
    step = int(re.search(r"stopped at step (\d+) of 4800; all is saved, go on with --resume", said(winner))[1])
    folder = fetched(url, tmp_path / "run")
    assert load_state(folder / "last.pt")["step"] == step == len(rows_of(folder))


def test_a_store_that_is_away_at_the_end(start, s3, url, data):
    """The training goes on and ends, nothing is lost, and a resume brings all there."""
    proxy, few = Proxy(s3.port), (f"data.train={data.val}", "data.val=null")
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "RESKD_STORE_SECONDS": "0.5"}
    run = start(url, *few, **environment)
    wait_for((url / "config.yaml").is_file, run)
    proxy.unavailable = 10**6
    assert run.wait() == 1 and "503" in said(run)
    (kept,) = start.home.rglob("result.json")
    assert f"the whole run is in {kept.parent}: run the command with --resume on this machine" in said(run)
    result, names = json.loads(kept.read_text()), {file.name for file in kept.parent.iterdir()}
    assert result["steps"] == 6 and not (url / "result.json").is_file()
    proxy.unavailable = 3
    resumed = start(url, *few, flags=("--resume",), **environment | {"RESKD_STORE_SECONDS": "10"})
    assert resumed.wait() == 0 and "finished already" in said(resumed), resumed.said()
    proxy.close()
    assert json.loads((url / "result.json").read_text()) == result and not list(start.home.rglob("result.json"))
    assert {name.split("/")[0] for name in url.files()} == names


def test_only_what_was_read_is_replaced(s3, url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_upload, "AGAIN", 0.1)
    uploads = []
    for machine in ("a", "b"):
        monkeypatch.setenv("TMPDIR", str(tmp_path / machine))
        uploads.append(RunUpload(url))
        uploads[-1].folder.mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", "last.pt"):
            (uploads[-1].folder / name).write_text(f"{name} of {machine}")
    ours, theirs = uploads
    with ours.behind():
        with pytest.raises(Changed, match="config.yaml: another run has written it"), theirs.behind():
            pass
        (url / "metrics.jsonl").write_bytes(b"metrics.jsonl of a")  # a put of ours, whose answer was lost
    assert (url / "last.pt").read_text() == "last.pt of a" and not ours.folder.exists()
    theirs.fetch()
    assert (theirs.folder / "metrics.jsonl").read_text() == "metrics.jsonl of a"
    with pytest.raises(Changed, match="last.pt: another run"), theirs.behind():
        (url / "last.pt").write_bytes(b"of a machine that was given up")
        (theirs.folder / "last.pt").write_text("of b")
        (theirs.folder / "result.json").write_text("of b")
    assert (url / "last.pt").read_text() == "of a machine that was given up" and not (url / "result.json").is_file()


def test_uploads_go_on_once_the_store_answers(s3, url, tmp_path, monkeypatch, capsys):
    proxy = Proxy(s3.port)
    for name, value in (
        ("TMPDIR", tmp_path),
        ("RESKD_STORE_SECONDS", "0.3"),
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}"),
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(run_upload, "AGAIN", 0.05)
    connections.cache_clear()
    upload = RunUpload(url)
    upload.folder.mkdir(parents=True)
    (upload.folder / "config.yaml").write_text("x")
    with upload.behind():
        proxy.unavailable = 10**6
        (upload.folder / "last.pt").write_text("1")
        while len(proxy.log) < 8:
            time.sleep(0.01)
        (upload.folder / "last.pt").write_text("2")
        proxy.unavailable = 0
        while not (url / "last.pt").is_file():
            time.sleep(0.01)
    assert (url / "last.pt").read_text() == "2"
    assert capsys.readouterr().err.count("tried again behind the training") == 1
    connections.cache_clear()
    proxy.close()


def test_an_evaluation_at_a_url(s3, url, data, whole):
    evaluate = ["evaluate", whole / "last.safetensors", "--data", data.val, "--set", "loader.workers=0", "--output"]
    command(*evaluate, url / "test.json")
    assert set(url.files()) == {"test.json", "test.answers.csv", "test.classes.csv", "test.confusion.png"}
    assert json.loads((url / "test.json").read_text())["clips"] == 40
    with pytest.raises(AssertionError, match="http://127.0.0.1:1/x.json: a web server can only be read"):
        command(*evaluate, "http://127.0.0.1:1/x.json")


def swept(output: Path | UrlPath, data) -> dict:
    """A sweep of two students, one after another, scored on labelled clips."""
    changes = [f"output={output}", f"data.train={data.val}", *QUICK, "size=16", "checkpoint_every=1"]
    return run_sweep(load_sweep(None, changes, ["seed=0,1"]), at_once=1, test=data.val)


def test_a_sweep_that_is_killed_goes_on_on_another_machine_and_is_that_of_a_folder(
    proxy, url, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "plot_confusion", lambda path, *_: path.touch())  # what takes longest
    monkeypatch.setattr(report, "classes_section", lambda _: None)
    whole, local = loop._optimizer_step, tmp_path / "sweep"
    theirs = swept(local, data)

    def killed(at_work, *rest):
        if at_work[0].config.output.name == "seed=1" and at_work[0].progress.step == 3:
            while not (url / "seed=1/last.pt").is_file():
                time.sleep(0.01)
            raise KeyboardInterrupt
        whole(at_work, *rest)

    monkeypatch.setenv("TMPDIR", str(tmp_path / "a"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_optimizer_step", killed)
        swept(url, data)
    proxy.log.clear()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "b"))
    ours = swept(url, data)
    asked = [(verb, path.replace("%3D", "=").partition(f"/{url.name}/")[2]) for verb, path, _ in proxy.log]
    assert asked.count(("GET", "seed=1/last.pt")) == 1 and ("GET", "seed=0/last.pt") not in asked
    assert ("PUT", "seed=1/last.safetensors") in asked and ("PUT", "seed=0/last.safetensors") not in asked
    assert not list(tmp_path.glob("b/*/*/*"))
    for told in (ours, theirs):
        assert len(told["cost"].pop("seconds")) == 2
    assert ours == theirs and (url / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in url.iterdir()} == {p.name for p in local.iterdir() if p.suffix != ".lock"}
    for name in ours["students"]:
        weights = f"{name}/last.safetensors"
        assert (url / weights).read_bytes() == (local / weights).read_bytes()
        assert (url / name / "test.answers.csv").read_bytes() == (local / name / "test.answers.csv").read_bytes()

    told = write_report([url], tmp_path / "report.html")
    counts = ("runs", "evaluations", "sweeps", "problems")
    assert [told[key] for key in counts] == [2, 2, 1, []]
    seen, scores = text_of(tmp_path / "report.html"), [row["score"] for row in ours["students"].values()]
    for name, score in zip(("seed=0", "seed=1"), scores, strict=True):  # each run has its evaluation
        assert re.search(rf" {name} finished tsm resnet18 16 .* {score:.2f} ", seen)

    (url / "seed=0/last.safetensors").write_bytes((url / "seed=1/last.safetensors").read_bytes())
    proxy.log.clear()
    again = swept(url, data)["students"]  # of other weights the score is another one
    assert again["seed=0"] == again["seed=1"] == ours["students"]["seed=1"]
    put = [path for verb, path, _ in proxy.log if verb == "PUT" and "/.probe-" not in path]
    written = {path.rpartition("/")[2] for path in put if "seed%3D0" in path}
    assert written == {f"test.{kind}" for kind in ("json", "answers.csv", "classes.csv", "confusion.png")}
    assert not [path for path in put if "seed%3D1" in path]
    assert not [path for verb, path, _ in proxy.log if verb == "GET" and path.endswith("last.pt")]


def test_a_store_that_fails_stops_a_sweep(proxy, url, data, tmp_path, monkeypatch, capsys):
    begun = []

    def train(cohort, dry_run=False, **_):
        if not dry_run:
            begun.extend(cohort)
            proxy.unavailable = 10**6
            (url / "seed=0/last.pt").read_bytes()

    monkeypatch.setattr(sweep, "train_cohort", train)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RESKD_STORE_SECONDS", "0.3")
    with pytest.raises(
        StoreError, match=f"{url}/seed=0/last.pt: get failed .503.*: see whether the store can be reached"
    ):
        swept(url, data)
    assert begun == ["seed=0"] and "the seconds are not stored" in capsys.readouterr().err
    with pytest.raises(ReskdError, match="output: .*http://127.0.0.1:1/x/seed=0: a web server can only be read"):
        swept(UrlPath("http://127.0.0.1:1/x"), data)


def test_a_student_that_another_run_has_written_fails_alone_and_a_store_stops_both_halves(url, data, monkeypatch):
    def train(cohort, dry_run=False, **_):
        if not dry_run:
            raise Changed(f"{next(iter(cohort))} is of another run")

    monkeypatch.setattr(sweep, "train_cohort", train)
    with pytest.raises(ReskdError, match="2 of 2 students failed:\nseed=0 is of another run\nseed=1 is of another run"):
        swept(url, data)
    task = partial(UrlPath.read_bytes, UrlPath("s3://no-such-bucket/x"))
    monkeypatch.setattr(sweep, "beside", lambda _: beside(task))
    with sweep._beside([{"x": None}], url) as failed, pytest.raises(StoreError, match="no such bucket"):
        failed()
