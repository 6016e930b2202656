"""A pack that is made at a URL: the objects are the files of a local one, and any machine goes on with it."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from filelock import FileLock

from cache.errors import ReskdError, StoreError
from stages.packs import output
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.packs.plan import plan_pack
from stages.prepare.prepare import prepare
from stages.remote.store import Changed, connections
from stages.remote.url_path import UrlPath
from stages.shards.dataset import open_dataset
from stages.shards.index import rows_path
from stages.stream.pack_files import read_pack, write_pack
from stages.stream.pack_reader import open_pack
from tests.runs import tree

SHARDS = ("000000.tar", "000001.tar", "000002.tar")


def config_of(data, where, **changes) -> PackConfig:
    return PackConfig(
        **{"data": data, "output": where, "frames": "all", "size": 16, "loader": {"workers": 0}, **changes}
    )


def fetched(url: UrlPath, folder) -> dict[str, str]:
    for name in url.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((url / name).read_bytes())
    return tree(folder)


@pytest.fixture(scope="module")
def made(s3, data, tmp_path_factory) -> SimpleNamespace:
    """40 clips in 3 shards of 16, 16 and 8; their pack in a folder, `local`, and at a URL."""
    root = tmp_path_factory.mktemp("packs")
    prepare(data.videos / "val", root / "data", clips_per_shard=16, workers=0)
    pack(config_of(root / "data", root / "local"))
    url = UrlPath(s3.bucket) / "packs" / "whole"
    result = pack(config_of(root / "data", url))
    assert result["clips"] == 40 and result["bytes"] == sum(url.files().values())
    return SimpleNamespace(root=root, data=root / "data", local=root / "local", url=url)


def test_the_objects_are_the_local_files_and_a_finished_run_replaces_none(made, proxy, tmp_path):
    assert fetched(made.url, tmp_path / "a") == tree(made.local)
    proxy.log.clear()
    assert pack(config_of(made.data, made.url))["clips"] == 0
    assert {method for method, _, _ in proxy.log} <= {"GET", "HEAD"}
    rows = [(method, path) for method, path, _ in proxy.log if "00000" in path]
    assert len(rows) == 2 * 2 * len(SHARDS)  # of each shard its rows and the tar's size, to plan and to finish
    with pytest.raises(
        ReskdError, match=f"{made.url} holds another pack:\n.*quality: the pack has 90, this run wants 80"
    ):
        pack(config_of(made.data, made.url, quality=80))
    with pytest.raises(ReskdError, match=f"{made.url.parent} is not an empty folder and holds no pack"):
        pack(config_of(made.data, made.url.parent))
    with pytest.raises(ValueError, match="http://h/pack: a web server can only be read"):
        config_of(made.data, "http://h/pack")


def test_another_machine_goes_on_after_a_store_that_went_away(made, proxy, tmp_path, monkeypatch):
    """Between the tar and the rows of the second shard: what is finished stays, and only that is."""
    url, put = made.url.with_name("broken"), output._put_shard

    def put_then_lose(to, folder, shard, seen, check):
        def lose():
            proxy.unavailable = 10**9 if shard == SHARDS[1] and shard in to.files() else 0
            check()

        put(to, folder, shard, seen, lose)
        assert not (folder / shard).exists()  # its room is free again

    assert pack(config_of(made.data, url), dry_run=True)["bytes"] > 0 and url.files() == {}
    for name, value in (("RESKD_STORE_SECONDS", "0.3"), ("TMPDIR", str(tmp_path / "a"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(output, "_put_shard", put_then_lose)
    connections.cache_clear()
    with pytest.raises(StoreError, match=rf"{url}/pack.json: head failed \(503.*RESKD_STORE_SECONDS.*finished stays"):
        pack(config_of(made.data, url))
    proxy.unavailable = 0
    monkeypatch.setattr(output, "_put_shard", put)
    assert set(url.files()) == {"pack.json", *SHARDS[:2], f"{SHARDS[0]}.rows.json"}
    with pytest.raises(ReskdError, match=f"{url}: the pack is not finished"):
        open_pack(url)
    assert not [*(tmp_path / "a").rglob("*.tar*")]
    monkeypatch.setenv("RESKD_STORE_SECONDS", "60")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "b"))
    left = output.working_folder(url) / "0" / "000002.tar"  # of a run that was killed
    left.parent.mkdir(parents=True, mode=0o700)
    left.write_bytes(b"x")
    for rank in "57":  # the killed run had more ranks; another process has one of their folders
        (left.parents[1] / rank).mkdir()
    with FileLock(left.parents[1] / "5.lock"):
        assert pack(config_of(made.data, url))["clips"] == 24
    assert fetched(url, tmp_path / "there") == tree(made.local)
    assert {p.name for p in left.parents[1].iterdir() if not p.name.endswith(".lock")} == {"5"}
    assert not [p for p in (tmp_path / "b").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_shards_of_older_rules_are_packed_again_rows_deleted_first(made, proxy, tmp_path):
    url = made.url.with_name("renewed")
    stored = read_pack(made.url)
    for name in made.url.files():
        (url / name).write_bytes((made.url / name).read_bytes())
    first, *others = stored.identity.shards
    older = replace(stored.identity, shards=(replace(first, rules=first.rules - 1), *others))
    write_pack(url, replace(stored, identity=older))
    proxy.log.clear()
    assert pack(config_of(made.data, url))["clips"] == 16
    changes = [path.rpartition("/")[2] for method, path, _ in proxy.log if method not in ("GET", "HEAD")]
    assert changes.pop(0).endswith("?delete") and changes == [
        "pack.json",
        SHARDS[0],
        f"{SHARDS[0]}.rows.json",
        "pack.json",
    ]
    assert fetched(url, tmp_path / "there") == tree(made.local)


def test_a_run_that_packs_something_else_is_noticed(made, monkeypatch, tmp_path):
    url, plan = made.url.with_name("two"), plan_pack(config_of(made.data, made.url), open_dataset(made.data))
    other = replace(plan, identity=replace(plan.identity, quality=80))
    put = output._put_shard

    def put_after_another(to, folder, shard, seen, check):
        if shard == SHARDS[1]:
            write_pack(to, replace(read_pack(to), identity=other.identity))
        put(to, folder, shard, seen, check)

    monkeypatch.setattr(output, "_put_shard", put_after_another)
    with pytest.raises(
        ReskdError, match=f"{url}/pack.json was deleted, or changed by another run that packs something"
    ):
        pack(config_of(made.data, url))
    assert f"{SHARDS[0]}.rows.json" in url.files() and SHARDS[1] not in url.files()
    # Both saw an empty folder: the second one to put the manifest looks whose it is.
    monkeypatch.setattr(output, "read_pack", lambda url: None)
    output.begin_pack(url, tmp_path, other)
    with pytest.raises(ReskdError, match=f"{url} holds another pack"):
        output.begin_pack(url, tmp_path, plan)
    assert json.loads((url / "pack.json").read_bytes())["identity"]["quality"] == 80


@pytest.mark.parametrize("moment", ["before", "uncommitted", "after the tar", "before the rows", "in turns"])
def test_a_shard_is_whole_of_one_of_two_runs(made, tmp_path, moment):
    """Another run, whose pictures differ, puts the same shard before this one, or at a moment in between."""
    url, shard, folders = made.url.with_name(f"race {moment}"), SHARDS[2], (tmp_path / "ours", tmp_path / "theirs")
    for folder in folders:
        folder.mkdir()
        tar = folder.name.encode() * 1000
        (folder / shard).write_bytes(tar)
        rows_path(folder, shard).write_text(json.dumps({"bytes": len(tar), "sha256": folder.name, "error": []}))
    ours, theirs = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    checks, names = [], {"before": theirs, "uncommitted": [shard], "after the tar": theirs,
                         "before the rows": [f"{shard}.rows.json"], "in turns": [shard]}[moment]  # fmt: skip

    def another(*_):
        for name in names:
            (url / name).write_bytes(theirs[name])

    def check():
        checks.append(set(url.files()))
        if len(checks) == 2 and moment not in ("before", "uncommitted"):
            another()

    if moment in ("before", "uncommitted"):
        another()
    fails = moment in ("uncommitted", "before the rows", "in turns")
    with pytest.raises(Changed, match=f"{url}/{shard} isn't what this run packs") if fails else nullcontext():
        output._put_shard(url, folders[0], shard, None, check)
    left = {"before the rows": {shard: ours[shard]}}.get(moment, {shard: theirs[shard]} if fails else theirs)
    assert {name: (url / name).read_bytes() for name in url.files()} == left
    assert checks[0] == ({*names} if moment in ("before", "uncommitted") else set())  # nothing is put before it
    if moment == "in turns":  # the next run takes up what is there
        output._put_shard(url, folders[0], shard, (url / shard).etag(), check)
        assert {name: (url / name).read_bytes() for name in url.files()} == ours


def test_the_disk_must_hold_two_shards_of_each_process(made, monkeypatch, tmp_path):
    plan = plan_pack(config_of(made.data, made.url), open_dataset(made.data))
    plan, url = replace(plan, sizes=(3 * 10**9, 5 * 10**9, 4 * 10**9)), made.url.with_name("full")
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * 10**9))
    with pytest.raises(
        ReskdError, match=f"8.00 GB free, and 2 shards, about 9.00 GB, lie there at once .*{url}: set TMPDIR"
    ):
        output.begin_pack(url, tmp_path, plan)
    with pytest.raises(ReskdError, match="needs about 12.00 GB more, the disk has 8.00 GB free"):
        output.begin_pack(tmp_path / "p", tmp_path / "p", plan)
    with pytest.raises(ReskdError, match=f"{url}: a shard would have about 5.6 GiB, and a store takes 5 GiB in one"):
        output.begin_pack(url, tmp_path, replace(plan, sizes=(6 * 10**9,)))
    monkeypatch.undo()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = output.working_folder(url)
    folder.mkdir(parents=True, mode=0o700)
    (folder / "0").write_bytes(b"")  # no folder can be made there
    with pytest.raises(OSError, match=f"{folder}/0"):
        pack(config_of(made.data, url))
