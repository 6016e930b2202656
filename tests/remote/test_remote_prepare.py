"""`prepare` at a URL: its objects are the files of a local output, a killed run goes on elsewhere, two runs don't mix."""

import errno
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cache.errors import ReskdError, StoreError
from cache.store import write_atomically
from stages.packs.output import begin_pack
from stages.prepare import check, make_data_set, plan
from stages.prepare.prepare import prepare
from stages.remote.outputs import working_folder
from stages.remote.store import Changed, connections
from stages.remote.url_path import UrlPath
from stages.runtime.interrupt import Interrupted
from stages.shards.dataset import open_dataset
from stages.shards.stream_shard import stream_shard
from stages.student.run_upload import RunUpload
from tests.remote.test_remote_data import upload_folder
from tests.runs import command
from tests.test_prepare import class_folders, clip, foreign, tree, write

make = partial(prepare, workers=0, clips_per_shard=4)


@pytest.fixture
def url(s3, request, tmp_path, monkeypatch) -> UrlPath:
    (UrlPath(s3.bucket) / "there").write_bytes(b"")  # the server makes a bucket at its first object
    on_machine(tmp_path / "machine", monkeypatch)
    return UrlPath(s3.bucket) / "prepare" / request.node.name


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Ten clips of three classes, one of them twice, and one that can't be read."""
    folder = class_folders(tmp_path_factory.mktemp("videos"))
    write(folder / "x/again.mp4", clip(0))
    write(folder / "y/bad.mp4", b"broken")
    return folder


@pytest.fixture(scope="module")
def local(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "out"
    make(source, folder)
    return folder


def on_machine(folder: Path, monkeypatch) -> None:
    """From here on this process has the temporary folder of another machine."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder))


def objects(url: UrlPath) -> dict[str, bytes]:
    return {name: (url / name).read_bytes() for name in url.files()}


def left_on(machine: Path) -> list[Path]:
    return [path for path in machine.rglob("*") if path.is_file() and path.suffix != ".lock"]


def stopped_at(monkeypatch, count: int, source: Path | UrlPath, url: UrlPath, work: str = "pack_shard") -> None:
    """Run until the shard number `count` would be made, and no further: what a kill leaves at the URL."""
    real, made = getattr(plan, work), []

    def cut(*rest):
        if len(made) == count:
            raise KeyboardInterrupt
        made.append(rest)
        return real(*rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plan, work, cut)
        make(source, url)


def test_the_objects_are_the_files_of_a_local_output(source, local, url, tmp_path):
    run = working_folder(url) / "last.pt"  # of a run at the same URL, which isn't at the URL yet
    run.parent.mkdir(parents=True, mode=0o700)
    run.touch()
    command("prepare", source, "--output", url, "--dry-run", "--set", "clips_per_shard=4", "--set", "workers=0")
    assert url.files() == {} and left_on(tmp_path) == [run]
    command("prepare", source, "--output", url, "--set", "clips_per_shard=4", "--set", "workers=0",
            "--json", tmp_path / "result.json")  # fmt: skip
    assert objects(url) == tree(local)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["data"], result["clips"], result["quarantine"]) == (str(url), 10, {"unreadable": 1})
    (tmp_path / "result.json").unlink()
    assert left_on(tmp_path) == [run]
    (url / ".prepare/check.json").write_bytes(b"{}")  # a kill just before the end
    data = make(source, url, disjoint_from=[local])
    assert [row for *_, row in stream_shard(data, "000000.tar")] == [
        row for *_, row in stream_shard(open_dataset(local), "000000.tar")
    ]
    lines = [json.loads(line)["kind"] for line in (url / "report.jsonl").read_text().splitlines()]
    assert lines.count("overlap") == 10 and set(url.files()) == set(tree(local))
    with pytest.raises(ReskdError, match=f"{url}: made from another source or with other options .*seed"):
        make(source, url, seed=1)


def test_a_killed_run_goes_on_on_another_machine(source, local, url, tmp_path, monkeypatch):
    stopped_at(monkeypatch, 1, source, url)
    before = {name: (url / name).etag() for name in url.files()}
    assert {*before} == {"prepare.json", ".prepare/check.json", "000000.tar", "000000.tar.rows.json",
                         ".prepare/notes/000000.tar.json"}  # fmt: skip
    (url / "000001.tar").upload(local / "000001.tar")  # the kill came between a tar and its note
    on_machine(tmp_path / "other", monkeypatch)
    packed, most = [], []
    real = plan.pack_shard

    def counted(path, *rest):
        packed.append(path.name)
        most.append(len(list(path.parent.glob("*.tar"))))
        return real(path, *rest)

    monkeypatch.setattr(plan, "pack_shard", counted)
    make(source, url)
    assert packed == ["000001.tar", "000002.tar"] and most == [0, 0]  # tars go from the disk at once
    assert objects(url) == tree(local) and not left_on(tmp_path)
    assert all((url / name).etag() == etag for name, etag in before.items() if not name.startswith("."))


def test_another_run_at_the_same_url_spoils_nothing(source, local, url, tmp_path, monkeypatch):
    """A machine that seemed dead is still at work: once with the same videos, once with others of the same size."""
    stopped_at(monkeypatch, 1, source, url)
    real = plan.pack_shard

    def with_another(*rest):
        monkeypatch.setattr(plan, "pack_shard", real)
        on_machine(tmp_path / "other", monkeypatch)
        make(source, url)
        return real(*rest)

    monkeypatch.setattr(plan, "pack_shard", with_another)
    make(source, url)
    assert objects(url) == tree(local) and not left_on(tmp_path)

    changed = Path(shutil.copytree(source, tmp_path / "changed"))
    (url / "index.json").unlink()
    for path in changed.rglob("v*.mp4"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = objects(url)
    with pytest.raises(Changed, match=f"{url}/000000.tar isn't what this run makes, and stays as it is: another run"):
        make(changed, url)
    assert {name: data for name, data in objects(url).items() if not name.startswith(".")} == before


def test_two_machines_check_alike_and_rows_are_read_in_the_folder(source, local, url, tmp_path, monkeypatch):
    def another_is_faster(file, data):
        (url / ".prepare/check.json").write_bytes(b'{"check": "quick"}')
        write_atomically(file, data)

    asked, real = [], UrlPath.open
    monkeypatch.setattr(check, "write_atomically", another_is_faster)
    monkeypatch.setattr(UrlPath, "open", lambda path, mode="rb": asked.append(path.name) or real(path))
    with pytest.raises(Changed, match=f"{url}/.prepare/check.json isn't what this run makes"):
        make(source, url, check="full")
    (url / ".prepare/check.json").unlink()
    assert make(source, url, disjoint_from=[local]).check == "quick"
    assert make(source, url, disjoint_from=[local]).check == "quick"  # finished: its rows are fetched together
    assert not [name for name in asked if name.endswith(".rows.json")]


def test_a_sigterm_leaves_nothing_and_a_full_disk_is_named(source, url, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped by SIGTERM; run it again"):
        patch.setattr(make_data_set, "write_rows", lambda *_: signal.raise_signal(signal.SIGTERM))
        make(source, url)
    assert not left_on(tmp_path) and signal.getsignal(signal.SIGTERM) is handler

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    machine = tmp_path / "machine"
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            ReskdError,
            match=f"{machine}/.*prepare: can't be written .No space.*or set TMPDIR to a folder of another disk",
        ),
    ):
        patch.setattr(make_data_set, "write_rows", full)
        make(source, url)


def test_a_store_without_conditional_puts_gets_no_new_output(source, url, tmp_path, monkeypatch):
    monkeypatch.setattr(UrlPath, "write_new", UrlPath.write_bytes)
    plan, upload = SimpleNamespace(sizes=(), small=()), RunUpload(url / "run")
    upload.folder.mkdir(parents=True)
    (upload.folder / "config.yaml").touch()
    for begin in (
        lambda: make(source, url / "data"),
        lambda: begin_pack(url / "pack", tmp_path, plan),
        lambda: upload.behind().__enter__(),
    ):
        with pytest.raises(StoreError, match=f"{url}/.*: its store ignores the condition of a put"):
            begin()
    assert url.files() == {}


def test_a_store_that_goes_away_and_comes_back(source, local, url, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("RESKD_STORE_SECONDS", "0.5")
    connections.cache_clear()
    real = make_data_set.write_rows

    def away(*rest):
        proxy.unavailable = 10**6
        return real(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(make_data_set, "write_rows", away)
        with pytest.raises(StoreError, match=f"{url}/000000.tar.rows.json: put failed .*503.*RESKD_STORE_SECONDS"):
            make(source, url)
    proxy.unavailable = 0
    make(source, url)
    assert objects(url) == tree(local) and not left_on(tmp_path)


@pytest.mark.parametrize("place", ["same", "below", "beside"])
def test_tars_at_a_url_are_indexed_at_their_place(url, place, tmp_path, monkeypatch):
    here = foreign(tmp_path / "here" / "tars")
    upload_folder(here, url / "tars")
    before = objects(url)
    local, output = {"same": (here, url / "tars"), "below": (here / "index", url / "tars/index"),
                     "beside": (tmp_path / "here/index", url / "index")}[place]  # fmt: skip
    make(here, local)
    fetched, real = [], UrlPath.download
    monkeypatch.setattr(UrlPath, "download", lambda self, file: fetched.append(self.name) or real(self, file))
    if place == "same":  # large tars: some videos are decoded to choose the check
        monkeypatch.setattr(check, "SMALL", 0)
    if place == "below":  # a small disk: no copy is kept
        monkeypatch.setattr(plan, "kept_tars", lambda tars, folder: set())
    if place == "beside":
        stopped_at(monkeypatch, 1, url / "tars", output, "index_shard")
        on_machine(tmp_path / "other", monkeypatch)
    data = make(url / "tars", output)
    assert len(fetched) == {"same": 2, "below": 4, "beside": 4}[place]
    assert objects(url) == before | {
        f"{output.relative_to(url)}/{n}": d for n, d in tree(local).items() if n[-4:] != ".tar"
    }
    assert data.base == url / "tars" and not left_on(tmp_path / "machine")
    assert data.read("part0/00000.tar", 1) == clip(1)


def test_bad_tars_and_other_sources_are_refused_by_their_url(url, source, tmp_path):
    tars = url / "tars"
    upload_folder(foreign(tmp_path / "tars"), tars)
    with pytest.raises(
        ReskdError, match=f"{tmp_path}/out: an index there can't name the tars at {tars}. Give a URL of the same"
    ):
        make(tars, tmp_path / "out")
    with pytest.raises(ReskdError, match=f"{tmp_path}/tars: tars of this machine.*Copy the tars to {url}/index"):
        make(tmp_path / "tars", url / "index")
    with pytest.raises(ReskdError, match=f"{tars}: --annotations goes with videos in a folder"):
        make(tars, url / "index", annotations=tmp_path / "x.csv")
    with pytest.raises(ReskdError, match=f"{url}/none: no tar shards below it. Of a URL only tar shards"):
        make(url / "none", url / "none")
    for output in (source, "http://127.0.0.1:1/x"):
        with pytest.raises(ReskdError, match="http://127.0.0.1:1/x.*web server can"):
            make("http://127.0.0.1:1/x" if output == source else source, output)
    with pytest.raises(ReskdError, match=f"{url}: not empty, it holds tars"):
        make(source, url)
    whole = (tars / "part1/00000.tar").read_bytes()
    (tars / "part1/00000.tar").write_bytes(whole[:-10240])
    with pytest.raises(ReskdError, match=f"{tars}/part1/00000.tar: "):
        make(tars, tars)
    (tars / "x.mp4").write_bytes(b"")
    with pytest.raises(ReskdError, match=rf"{tars}: a video \(x.mp4\) below it"):
        make(tars, tars)
    assert not (tars / "prepare.json").is_file() and not left_on(tmp_path / "machine")


def test_a_small_disk_large_shards_and_tars_that_change_are_told(url, source, tmp_path, monkeypatch):
    tars, machine = url / "tars", tmp_path / "machine"
    upload_folder(foreign(tmp_path / "tars"), tars)
    free = 0.6 * sum(path.stat().st_size for path in source.rglob("*.mp4"))  # room for any of three shards, not for all
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        make(source, url / "out")
        with pytest.raises(ReskdError, match=f"{machine}/.*GB needed, .* free. Make room .*set TMPDIR to a folder"):
            make(source, url / "all", clips_per_shard=50)
        free = 100
        with pytest.raises(
            ReskdError, match=f"{tars}/part0/00000.tar: .*needed for a copy in the temporary folder.*TMPDIR"
        ):
            make(tars, tars)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "MAX_PUT", 5000)
        with pytest.raises(ReskdError, match=f"{url}/big/000000.tar would have .*smaller --set max_shard_bytes"):
            make(source, url / "big")
    last = tars / "part1/00000.tar"
    for change, why in ((partial(last.write_bytes, b"other"), "replaced"), (last.unlink, "deleted")):
        monkeypatch.setattr(plan, "kept_tars", lambda *_, change=change: {change()})  # once they are listed
        with pytest.raises(ReskdError, match=f"{last}: {why} since it was listed"):
            make(tars, tars)
    assert not left_on(machine)
    with monkeypatch.context() as patch:
        first, real = tars / "part0/00000.tar", plan.choose_field
        other = first.read_bytes().replace(b'"label": "', b'"label": "x', 1)[: first.size()]
        patch.setattr(plan, "kept_tars", lambda *_: {})
        patch.setattr(plan, "choose_field", lambda survey: first.write_bytes(other) and real(survey))
        with pytest.raises(ReskdError, match=f"{first}: replaced since it was listed"):
            make(tars, tars / "index")
