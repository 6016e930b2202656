"""The engine on a real Ray: what is computed, and what deaths, errors, other nodes and Ctrl-C do to it."""

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.teacher_time import teacher_time_of
from stages.engine.check_paths import check_paths, marked
from stages.engine.code_version import code_version
from stages.engine.engine import Engine, Job
from stages.engine.ray_cluster import ray_cluster
from stages.engine.run_units import run_units
from stages.remote.url_path import UrlPath
from stages.teacher.cache_teacher import cache_teacher
from tests.engine.work import checking, work
from tests.runs import POLICY, QUICK, cache_config, command, sets, tree
from tests.zygote import ROOT


@pytest.fixture(scope="module")
def ray(tmp_path_factory, s3):
    """A Ray of this machine for all tests: its `address`, and the `environment` of its users. Its actors can reach `s3`."""
    folder = tmp_path_factory.mktemp("ray")
    with ray_cluster(None, folder) as cluster:
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        environment = {name: os.environ[name] for name in names}
        address = cluster.ray.get_runtime_context().gcs_address
        yield SimpleNamespace(address=address, environment=environment, cluster=cluster, folder=folder)


@pytest.fixture
def here(ray, monkeypatch):
    """`run_units` in this process, which is connected already."""
    from contextlib import nullcontext

    monkeypatch.setattr("stages.engine.run_units.ray_cluster", lambda *_: nullcontext(ray.cluster))
    return partial(run_units, Engine(ray.address, 1))


def job(folder: Path, units: dict[str, str], **changes) -> Job:
    """Units -> what they do: see `work`."""
    whole = {"work": partial(work, folder), "units": units, "size": dict.fromkeys(units, 1), "title": "test",
             "progress_unit": "units", "output": folder, "inputs": ()}  # fmt: skip
    return Job(**whole | changes)


def test_a_local_ray_listens_on_loopback_and_writes_beside_its_token(ray):
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and set(listening) == {"127.0.0.1"}
    token = Path(ray.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0 and (token.parent / "session_latest").exists()
    assert not (Path.home() / ".ray").exists()


def test_a_unit_that_kills_its_actor_again_and_again_is_left_out_and_the_others_finish(here, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.engine.run_units.TRIES", 2)  # a start of an actor takes long
    units = {"a": "fine", "killer": "die", "b": "fine", "c": "fine"}
    outcome = here(job(tmp_path, units))
    assert set(outcome.results) == {"a", "b", "c"} and set(outcome.failed) == {"killer"}
    assert "its actor died 2 times" in outcome.failed["killer"]
    assert len((tmp_path / "killer").read_text().splitlines()) == 2
    assert outcome.deaths == 2 and outcome.redone == 2
    assert all(len((tmp_path / name).read_text().splitlines()) == 1 for name in "abc")  # nothing is done twice


def test_actors_work_at_once_and_errors_of_a_unit_and_of_a_disk(here, ray, tmp_path):
    """Two actors; the bad unit comes last, so that none is started for others."""
    outcome = here.func(Engine(ray.address, 2), job(tmp_path, {"a": "meet", "b": "meet", "bad": "bad"}, threads=3))
    assert set(outcome.results) == {"a", "b"} and "bad is damaged" in outcome.failed["bad"]
    assert (tmp_path / "a").read_text().split()[1] == "3"  # threads, not Ray's number
    with pytest.raises(ReskdError, match=r"No space left on device[\s\S]*What is finished stays"):
        here(job(tmp_path, {"full": "full", "fine": "fine"}))


def test_a_node_that_sees_other_files_is_refused_by_name(here, tmp_path):
    with marked(tmp_path) as mark:
        missing = partial(checking, tmp_path, (tmp_path / "nowhere",), mark)
        with pytest.raises(
            ReskdError, match=r"no node can do the work:\n127\.0\.0\.1 \(.*nowhere is not there: put it"
        ):
            here(job(tmp_path, {"a": "fine"}, work=missing))
    with pytest.raises(ReskdError, match="is not the folder that the driver writes into"):
        check_paths((), mark)  # a folder of the same name, without the driver's mark
    assert not list(tmp_path.iterdir())


def test_an_address_at_which_nobody_answers(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ReskdError, match=rf"--address {address}: nobody answers \(.*or leave it out"):
            run_units(Engine(address), job(tmp_path, {"a": "fine"}))
    with pytest.raises(ReskdError, match="give HOST:PORT"):
        run_units(Engine("ray://head:10001"), job(tmp_path, {"a": "fine"}))
    assert time.monotonic() - began < 15


def caching(data, teacher, output, *more) -> list[str]:
    config = {"output": str(output), "data": str(data.train), "teacher.checkpoint": str(teacher), "policy": POLICY,
              "views": 2, "loader.workers": 1}  # fmt: skip
    return ["cache-teacher", *sets(config), "--engine", "ray", *map(str, more)]


def actors(of: int | None = None) -> list[psutil.Process]:
    """The processes of actors that are at work."""
    return [p for p in psutil.Process(of).children(recursive=True) if p.name().startswith("ray::Actor")]


def wait_for(what, seconds: float = 180):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_killed_actor_is_replaced_a_bad_shard_left_out_and_a_rerun_ends_in_the_cache_of_one_process(
    ray, zygote, data, teacher, cached, s3, tmp_path
):
    """Into a store. A local folder is the same but for what is put there after each shard; see the next test."""
    shutil.copytree(data.train, tmp_path / "data")
    bad, url = tmp_path / "data/000002.tar", UrlPath(s3.bucket) / "engine.zarr"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    more = ("--actors", 1, "--address", ray.address, "--set", "loader.workers=0")
    at_work = zygote.start(
        caching(SimpleNamespace(train=tmp_path / "data"), teacher, url, *more), **ray.environment, **s3.environment
    )
    wait_for(lambda: (url / "000000.tar/.writer").is_file() or at_work.status.exists())
    actors()[0].kill()
    assert at_work.wait() == 1, at_work.said()
    said = " ".join(at_work.said().split())
    assert "lost an actor on node 127.0.0.1" in said and "0 units in flight, 1 failed" in said
    assert "1 of 3 shards are missing: 000002.tar: node 127.0.0.1" in said and "indexed tar back" in said
    assert [(url / f"00000{shard}.tar/zarr.json").is_file() for shard in range(3)] == [True, True, False]
    bad.write_bytes(whole)
    cache_teacher(cache_config(url, data, teacher))  # goes on, in this process
    for name in url.files():
        (tmp_path / "t.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t.zarr" / name).write_bytes((url / name).read_bytes())
    assert tree(tmp_path / "t.zarr") == tree(cached)
    assert teacher_time_of(tmp_path / "t.zarr", load_manifest(tmp_path / "t.zarr").notes).clip_views >= 400


@pytest.fixture
def short_folder():
    """A folder whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_ctrl_c_ends_a_local_ray_and_a_rerun_goes_on(zygote, data, teacher, cached, short_folder):
    output = short_folder / "t.zarr"
    at_work = zygote.start(caching(data, teacher, output, "--actors", 1))
    wait_for(lambda: list(output.glob("*.tar/zarr.json")) or at_work.status.exists())
    assert (output / ".ray" / "token").exists()
    ours = psutil.Process(at_work.pid).children(recursive=True)
    at_work.kill(signal.SIGINT, group=False)
    assert at_work.wait() == 130 and "Stopped." in at_work.said()
    psutil.wait_procs(ours, timeout=5)
    assert not [p for p in ours if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not [p.name for p in output.iterdir() if p.name.startswith((".ray", ".engine"))]
    done = {p.parent.name: p.stat().st_mtime_ns for p in output.glob("*.tar/zarr.json")}
    cache_teacher(cache_config(output, data, teacher))
    assert tree(output) == tree(cached)
    assert done == {name: (output / name / "zarr.json").stat().st_mtime_ns for name in done}


def test_a_worker_with_other_code_is_refused_by_name(ray, zygote, data, teacher, tmp_path):
    for folder in ("cache", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "stages/video/render.py", "a") as file:
        file.write("# another version\n")
    more = ("--address", ray.address, "--actors", 1)  # workers import what lies in the driver's working directory
    refused = zygote.start(caching(data, teacher, tmp_path / "t.zarr", *more), cwd=tmp_path, **ray.environment)
    assert refused.wait() == 1
    here, there = code_version()["reskd"], f"another version of the code in {tmp_path}: reskd "
    assert "127.0.0.1 (" in refused.said() and there in refused.said() and f"(wanted: {here})" in refused.said()


def test_a_sweep_of_which_an_actor_is_killed_has_the_scores_of_one_process(ray, s3, zygote, few, few_cached, tmp_path):
    """At a URL."""
    url = UrlPath(s3.bucket) / "engine" / "sweep"

    def sweeping(output: Path | UrlPath) -> list[str]:
        config = [f"output={output}", "size=16", "losses={logit_kl: 1.0}", f"data.train={few.train}",
                  f"data.val={few.val}", f"data.cache={few_cached}", *QUICK, "checkpoint_every=2", "batch_size=8"]  # fmt: skip
        return [
            "sweep",
            *(part for change in config for part in ("--set", change)),
            "--grid",
            "seed=0,1",
        ]

    command(*sweeping(tmp_path / "alone"))
    (url.parent.parent / "there").write_bytes(b"")  # the server makes a bucket at its first object
    engine = ["--engine", "ray", "--address", ray.address, "--actors", "1"]
    workers = ["--set", "loader.workers=1"]  # a process with connections starts them afresh, an actor too
    at_work = zygote.start([*sweeping(url), *workers, *engine], **ray.environment, **s3.environment)
    wait_for(lambda: any((url / f"seed={seed}/last.pt").is_file() for seed in (0, 1)) or at_work.status.exists())
    actors()[0].kill()  # another one goes on with its cohort, from the last checkpoint
    assert at_work.wait() == 0, at_work.said()
    alone, ours = (json.loads((out / "sweep.json").read_bytes()) for out in (tmp_path / "alone", url))
    assert all(ours[part] == alone[part] for part in ("students", "points", "front", "failed"))
    assert set(ours["cost"]) == set(alone["cost"]) and not [p for p in url.iterdir() if p.name.startswith(".engine")]
