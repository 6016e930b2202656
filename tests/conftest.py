"""Small real data, made once a session: H.264 clips, prepared shards, a trained teacher, its cache.

The tests run in several processes (pytest-xdist, see pyproject.toml), with one thread each. A module's tests stay in one
process, so that its fixtures are made once; modules that take long begin first. The process that leads the others runs no
test and imports nothing of ours: the imports are in the functions.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# The tests start many interpreters. Each would compile torch's sources again, which takes 10 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import contextlib
import faulthandler
import gc
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock
from hypothesis import settings

from stages.bench.s3_server import Proxy, environment, start_server, stop_server
from tests.zygote import GPUS, Zygote, start_zygote

sys.dont_write_bytecode = False

settings.register_profile("house", deadline=None)  # a busy machine fails no test
settings.load_profile("house")

MARK = "RESKD_TEST_SESSION"  # in the environment of every program that the tests start


def leads(config) -> bool:
    """Whether this process only hands the tests to others."""
    return bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")


def pytest_xdist_auto_num_workers(config):
    """One process more than cores: some tests wait for others to start, end or be killed."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config):
    os.environ[MARK] = str(os.getpid())
    if not leads(config) and not config.getoption("collectonly", False):
        config.zygote = start_zygote()


LONG = ("bench/test_fidelity", "engine/test_engine", "e2e/", "test_stored_maps", "test_train_student", "bench/",
        "test_cohorts", "cache/test_kills", "test_prepare", "test_configs", "test_pack", "models/", "export/", "predict/",
        "test_sweep")  # modules, the longest first  # fmt: skip


def pytest_collection_modifyitems(items):
    """Long modules first: the last process is not to be alone with one of them."""
    items.sort(key=lambda item: next((i for i, part in enumerate(LONG) if part in item.nodeid), len(LONG)))


def pytest_collection_finish(session):
    """What is imported stays: neither this process nor its forks look through it for garbage."""
    if not leads(session.config):
        gc.collect()
        gc.freeze()


def pytest_unconfigure(config):
    if hasattr(config, "zygote"):
        config.zygote.close()


def pytest_sessionfinish(session, exitstatus):
    """No process outlives the tests, and an interpreter that does not end says where it hangs, and ends."""
    gc.unfreeze()
    if not hasattr(session.config, "workerinput"):
        stop_server(shared_folder(session.config))
    for process in [] if leads(session.config) else psutil.process_iter():  # who leads has started nothing else
        with contextlib.suppress(psutil.Error):
            ours = process.pid != os.getpid() and process.environ().get(MARK) == str(os.getpid())
            if ours and "resource_tracker" not in " ".join(process.cmdline()):  # which ends with us
                process.kill()

    def end_anyway():
        time.sleep(60)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        os._exit(int(exitstatus))

    threading.Thread(target=end_anyway, daemon=True).start()


@pytest.fixture(scope="session", params=["cpu", *(["cuda"] if GPUS else [])])
def device(request):
    """A test that takes this runs on the CPU and, where there is one, on a GPU."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch.device(request.param)


def made_once(config, name: str, make) -> Path:
    """A folder that the first test process that needs it fills, for all of them. No test changes what is in it."""
    folder = shared_folder(config) / name
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.with_name(f"{name}.made").exists():
            folder.mkdir()
            make(folder)
            folder.with_name(f"{name}.made").touch()
    return folder


@pytest.fixture(scope="session")
def data(request) -> SimpleNamespace:
    """train: 200 clips in 3 shards of 80, 80, 40; val: 40 in one. `videos` are their files."""
    from stages.demo.digits import make_digits
    from stages.prepare.prepare import prepare

    def make(root: Path) -> None:
        make_digits(root / "videos", clips={"train": 200, "val": 40})
        for split in ("train", "val"):
            prepare(root / "videos" / split, root / split, clips_per_shard=80, workers=0)

    root = made_once(request.config, "digits", make)
    return SimpleNamespace(train=root / "train", val=root / "val", videos=root / "videos")


@pytest.fixture(scope="session")
def shuffled(data, request) -> Path:
    """The clips of `data.train` in another order, in shards of the same names and sizes."""
    from stages.prepare.prepare import prepare

    def make(folder: Path) -> None:
        prepare(data.videos / "train", folder / "data", clips_per_shard=80, seed=7, workers=0)

    return made_once(request.config, "shuffled", make) / "data"


@pytest.fixture(scope="session")
def teacher(data, request) -> Path:
    """The checkpoint of a net trained for a moment at 32 px."""
    from stages.student.train_student import train_student
    from tests.runs import POLICY, train_config

    def make(folder: Path) -> None:
        train_student(train_config(folder / "teacher", data, "size=32", f"policy={POLICY}", f"data.val={data.val}"))

    return made_once(request.config, "runs", make) / "teacher" / "last.safetensors"


@pytest.fixture(scope="session")
def cached(data, teacher, request) -> Path:
    """Two views of every clip of `data.train`, logits and features."""
    from stages.teacher.cache_teacher import cache_teacher
    from tests.runs import cache_config

    def make(folder: Path) -> None:
        cache_teacher(cache_config(folder / "teacher.zarr", data, teacher))

    return made_once(request.config, "cache", make) / "teacher.zarr"


@pytest.fixture(scope="session")
def few(data) -> SimpleNamespace:
    """The 40 clips of `data.val` to train on and to validate with: for tests that need a training, and no second shard."""
    return SimpleNamespace(train=data.val, val=data.val, videos=data.videos)


@pytest.fixture(scope="session")
def few_cached(few, teacher, request) -> Path:
    """Two views of every clip of `few`, logits and features."""
    from stages.teacher.cache_teacher import cache_teacher
    from tests.runs import cache_config

    def make(folder: Path) -> None:
        cache_teacher(cache_config(folder / "teacher.zarr", few, teacher))

    return made_once(request.config, "few_cache", make) / "teacher.zarr"


@pytest.fixture(scope="session")
def zygote(request, tmp_path_factory) -> Zygote:
    """Runs commands in processes of their own, without paying the imports each time."""
    zygote = request.config.zygote
    zygote.folder = tmp_path_factory.mktemp("zygote")
    return zygote


def shared_folder(config) -> Path:
    """A temporary folder of all processes of this test session."""
    own = config._tmp_path_factory.getbasetemp()
    return own.parent if hasattr(config, "workerinput") else own


@pytest.fixture(scope="session")
def s3(request) -> SimpleNamespace:
    """A real S3 server on loopback, one for all test processes: its `port`, the `environment` of its users, an own `bucket`."""
    from stages.remote.url_path import UrlPath

    port = start_server(shared_folder(request.config))
    os.environ.update(environment(port))
    bucket = f"s3://bucket-{os.getpid()}"
    (UrlPath(bucket) / "there").write_bytes(b"")  # the server makes a bucket at its first object
    return SimpleNamespace(port=port, environment=environment(port), bucket=bucket)


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the server, which this process talks to while the test lasts."""
    from stages.remote.store import connections

    proxy = Proxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    connections.cache_clear()
    yield proxy
    connections.cache_clear()
    proxy.close()


@pytest.fixture(scope="module", autouse=True)
def _forks_again():
    """A module that used a store doesn't change how later ones in this process start workers. They use none.

    Nor does it leave its fork server, which has imported what its own workers need.
    """
    yield
    forkserver._forkserver._stop()
    forkserver.set_forkserver_preload(["__main__"])  # as at first: the next one need not import what this one did
    if used := sys.modules.get("stages.remote.store"):
        used._used_in.clear()
        used.connections.cache_clear()


def _folder(variable: str, what: str) -> Path:
    """The folder that a variable of the environment names; without it the test is skipped."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder of {what}")
    return Path(folder)


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real videos of many codecs that RESKD_CLIPS names."""
    return _folder("RESKD_CLIPS", "real videos")


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of files that went wrong, with what is right, that RESKD_CASES names."""
    return _folder("RESKD_CASES", "files that went wrong")


@pytest.fixture(scope="session")
def jhmdb() -> Path:
    """The folder of real clips of people, with their labels and splits, that RESKD_JHMDB names."""
    return _folder("RESKD_JHMDB", "real, labelled clips")
