"""Caches, packs and checkpoints at URLs: the same results as from local files, and what went wrong is said."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cache.errors import ReskdError, StoreError
from cache.group import load_manifest
from cache.reader import CacheReader
from cache.store import METADATA
from cache.verify import repair, verify
from stages.config.file import save_config
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.remote.store import connections
from stages.remote.url_path import UrlPath
from stages.report.report import write_report
from stages.shards.classes import read_classes
from stages.shards.dataset import open_dataset
from stages.stream.pack_reader import open_pack
from stages.stream.replay import open_replay
from stages.student.train_student import train_student
from tests.remote.test_remote_data import upload_folder
from tests.runs import MODEL, READING, cache_config, rows_of, train_config, tree

BOTH = ("logits", "features")
STUDENT = ["losses.logit_kl=1", "losses.feature_mse=1", "schedule.epochs=1"]


@pytest.fixture(scope="module")
def remote(s3, data, teacher, cached) -> SimpleNamespace:
    """The data sets, the teacher and its cache, as `data`, `teacher` and `cached` are, in the bucket."""
    root = UrlPath(s3.bucket) / "read"
    for name, folder in (("train", data.train), ("val", data.val), ("t.zarr", cached)):
        upload_folder(folder, root / name)
    (root / "teacher.safetensors").upload(teacher)
    return SimpleNamespace(root=root, train=root / "train", val=root / "val", cache=root / "t.zarr",
                           teacher=root / "teacher.safetensors", environment=s3.environment)  # fmt: skip


@pytest.fixture
def copy(remote, request) -> UrlPath:
    """A copy of the first shard's group and the root of the cache, to be damaged."""
    folder = remote.root / "copies" / request.node.name
    for name in remote.cache.files():
        (folder / name).write_bytes((remote.cache / name).read_bytes())
    return folder


def test_a_reader_gives_the_blocks_of_the_local_cache_by_few_requests(remote, cached, proxy):
    ours, theirs = CacheReader(cached, BOTH), CacheReader(remote.cache, BOTH)
    assert len(proxy.log) == 1  # the manifest
    constants, constants_there = ours.constants(), theirs.constants()
    assert constants.keys() == constants_there.keys()
    assert all(np.array_equal(values, constants_there[name]) for name, values in constants.items())
    for entry in ours.manifest.identity.shards:
        for view in range(2):
            for block in range(-(-entry.clips // 64)):
                here, there = (vars(reader.block(entry.name, view, block)) for reader in (ours, theirs))
                assert all(np.array_equal(value, there[name]) for name, value in here.items())
    before = len(proxy.log)
    CacheReader(remote.cache, ("logits",)).block("000002.tar", 0, 0)
    arrays = len(ours._specs) - sum(name.startswith("features") for name in ours._specs)
    asked = proxy.log[before:]  # manifest, group, and of each array its metadata and one chunk
    assert len(asked) == 2 + 2 * arrays and {method for method, _, _ in asked} == {"GET"}


def test_a_run_asks_for_no_shard_of_the_cache_before_it_reads_it(remote, data, proxy):
    replay = open_replay(remote.cache, 2, ("logits",), open_dataset(data.train), False)
    assert replay.views == 2 and len(proxy.log) == 2 and not any("000000.tar" in path for _, path, _ in proxy.log)


def test_a_student_learns_from_urls_what_it_learns_from_local_files(remote, data, teacher, cached, zygote, tmp_path):
    local = [f"data.val={data.val}", f"data.cache={cached}", f"init.path={teacher}", "init.head=drop", *STUDENT]
    train_student(train_config(tmp_path / "local", data, *local))
    there = [f"output={tmp_path / 'remote'}", f"data.train={remote.train}", "size=16", *MODEL, *READING, "optim.lr=0.005",
             "batch_size=16", "log_every=1", f"data.val={remote.val}", f"data.cache={remote.cache}",
             f"init.path={remote.teacher}", "init.head=drop", *STUDENT, "loader.workers=1"]  # fmt: skip
    options = [part for change in there for part in ("--set", change)]
    command = zygote.start(["train-student", *options], **remote.environment)
    assert command.wait() == 0, command.said()
    assert rows_of(tmp_path / "remote") == rows_of(tmp_path / "local") != []
    assert rows_of(tmp_path / "remote", "val") == rows_of(tmp_path / "local", "val") != []


def test_commands_say_the_same_of_urls(remote, data, teacher, cached, zygote, tmp_path):
    def results(name: str, train, val, cache, checkpoint) -> list[dict]:
        """What inspect-cache, verify-cache and evaluate return."""
        (tmp_path / name).mkdir()
        files = [tmp_path / name / f"{n}.json" for n in range(3)]
        asked = [
            ["inspect-cache", cache, "--data", train, "--clip", "000001.tar/" + key, "--json", files[0]],
            ["verify-cache", cache, "--data", train, "--recompute", "2", "--teacher", checkpoint, "--json", files[1]],
            ["evaluate", checkpoint, "--data", val, "--json", files[2], "--set", "loader.workers=0"],
        ]
        commands = [zygote.start(arguments, **remote.environment) for arguments in asked]
        for command in commands:
            assert command.wait() == 0, command.said()
        return [json.loads(file.read_text()) for file in files]

    key = open_dataset(data.train).rows("000001.tar")[5].key
    ours = results("local", data.train, data.val, cached, teacher)
    theirs = results("remote", remote.train, remote.val, remote.cache, remote.teacher)
    assert ours[0].pop("path") == str(cached) and theirs[0].pop("path") == str(remote.cache)
    for result in (*ours, *theirs):
        result.pop("checkpoint", None), result.pop("data", None)
    assert theirs[2].pop("checkpoint_etag") == remote.teacher.etag()
    assert all(result[1].pop("verified") < 0.01 for result in (ours, theirs))  # each of other clips
    assert ours == theirs and ours[1]["problems"] == []


def test_a_pack_gives_the_frames_of_the_local_one_by_one_request_a_clip(remote, data, proxy, tmp_path):
    pack(PackConfig(data=data.val, output=tmp_path / "pack", frames="all", size=24, loader={"workers": 0}))
    upload_folder(tmp_path / "pack", remote.root / "pack")
    val, ours, theirs = open_dataset(data.val), open_pack(tmp_path / "pack"), open_pack(remote.root / "pack")
    theirs.check_files()
    shard, frames = val.shards[0].name, np.array([3, 0, 2])
    theirs.decode(val, shard, 0, frames)
    before = len(proxy.log)
    for row in range(0, 40, 13):
        here, there = (made.decode(val, shard, row, frames) for made in (ours, theirs))
        assert np.array_equal(here[0], there[0]) and here[1] == there[1]
    assert len(proxy.log) == before + 4
    tar = remote.root / "pack" / shard
    tar.write_bytes(bytes(len(tar.read_bytes())))
    with pytest.raises(ReskdError, match=f"{tar}: frame . of .*other content.*run `pack` again"):
        theirs.decode(val, shard, 1, frames)


def test_what_isnt_a_cache_or_a_checkpoint_at_a_url(remote, zygote, tmp_path):
    for arguments, status, said in [
        (["inspect-cache", remote.train], 1, f"{remote.train} is not a cache (it has no zarr.json)"),
        (["inspect-cache", remote.root / "none"], 1, "is not a cache (there is no such folder)"),
        (["verify-cache", "s3://no-such-bucket/t.zarr"], 1, "s3://no-such-bucket/t.zarr/zarr.json: get failed (no such bucket)"),
        (["evaluate", remote.root / "x.safetensors", "--data", remote.val], 1, f"checkpoint {remote.root}/x.safetensors does"),
        (["evaluate", remote.train / "index.json", "--data", remote.val], 1, f"checkpoint {remote.train}/index.json can't be"),
        (["evaluate", remote.teacher, "--data", remote.cache], 1, f"{remote.cache}/index.json: no data set in this folder"),
        (["inspect-cache", remote.cache, "--png", "s3://b/x.png"], 2, "s3://b/x.png is a URL, and this must be a path of this"),
        (["predict", remote.teacher, remote.val, "--output", "http://h/x.jsonl"], 1, "http://h/x.jsonl: a web server can only"),
    ]:  # fmt: skip
        command = zygote.start(arguments, COLUMNS="999", **remote.environment)
        assert command.wait() == status and said in " ".join(command.said().split()), command.said()
    wrong = remote.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    command = zygote.start(["evaluate", remote.teacher, "--data", remote.val], COLUMNS="999", **wrong)
    assert command.wait() == 1 and "check the credentials in the environment: AWS_ACCESS_KEY_ID" in command.said()
    assert "damaged" not in command.said() and "prepare" not in command.said()


def test_a_lost_or_exchanged_chunk_is_named_and_repaired(remote, copy):
    shard, before = copy / "000001.tar", copy.files()
    (shard / "logits/c.0.1.0").unlink()
    (copy / "000002.tar/logits/c.0.0.0").write_bytes((shard / "logits/c.0.0.0").read_bytes())
    reader = CacheReader(copy)
    assert reader.block("000001.tar", 0, 0).valid.all()
    with pytest.raises(ReskdError, match=f"{shard}: array logits, chunk c.0.1.0: it is missing"):
        reader.block("000001.tar", 1, 0)
    with pytest.raises(ReskdError, match="array logits, chunk c.0.0.0: it has .* bytes, .* were committed"):
        reader.block("000002.tar", 0, 0)
    manifest = load_manifest(copy)
    problems = verify(copy, manifest)
    assert {(p.shard, p.what, p.remedy) for p in problems} == {
        ("000001.tar", "logits/c.0.1.0: missing", "redo"),
        ("000002.tar", next(p.what for p in problems if p.shard == "000002.tar"), "redo"),
    }
    for name in (".writer", "logits/c.0.9.0"):  # of a process at work
        (shard / name).write_bytes(b"{}")
    assert verify(copy, manifest) == problems
    with pytest.raises(ReskdError, match=f"{shard}/.writer: a process writes this shard, or was killed.*cache-teacher"):
        repair(copy, manifest, problems)
    assert load_manifest(copy) == manifest
    (shard / ".writer").unlink()
    repair(copy, manifest, problems)
    left = copy.files()
    assert {name for name in before if name.startswith("000000.tar/")} < left.keys()
    assert not any(name.startswith(("000001.tar", "000002.tar")) for name in left)
    assert load_manifest(copy).finalised == 0 and verify(copy, load_manifest(copy)) == []
    with pytest.raises(ReskdError, match="its manifest changed while it was checked: wait"):
        repair(copy, manifest, problems)


def test_a_store_that_does_not_answer_is_no_damage(remote, copy, proxy, data, monkeypatch):
    manifest, before = load_manifest(copy), copy.files()
    monkeypatch.setenv("RESKD_STORE_SECONDS", "0.5")
    connections.cache_clear()
    reader = CacheReader(copy)
    proxy.cut = 10**9
    for asked in (
        lambda: verify(copy, manifest),
        lambda: CacheReader(copy),
        lambda: reader.block("000000.tar", 0, 0),
        lambda: open_dataset(remote.train),
        lambda: open_pack(remote.root / "pack"),
    ):
        with pytest.raises(StoreError, match="s3://.* failed .*RESKD_STORE_SECONDS") as caught:
            asked()
        assert "damaged" not in str(caught.value) and "elete" not in str(caught.value)
    proxy.cut = 0
    assert copy.files() == before


def test_a_group_of_another_cache_under_the_shards_name_is_refused(copy):
    first, second = (copy / f"{name}.tar/{METADATA}" for name in ("000000", "000001"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ReskdError, match=f"{copy}/000001.tar was made by another run than the cache's manifest"):
        CacheReader(copy).block("000001.tar", 0, 0)
    (problem,) = verify(copy, load_manifest(copy))
    assert (problem.shard, problem.remedy) == ("000001.tar", "redo") and "it is the group of" in problem.what


def test_stage_one_makes_the_same_bytes_of_data_and_teacher_at_urls(remote, data, teacher, cached, zygote, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher)
    save_config(config.model_copy(update={"data": remote.train}), tmp_path / "config.yaml")
    asked = ["cache-teacher", "--config", tmp_path / "config.yaml", "--set", f"teacher.checkpoint={remote.teacher}"]
    command = zygote.start(asked, **remote.environment)
    assert command.wait() == 0, command.said()
    assert tree(tmp_path / "t.zarr") == tree(cached)


def test_other_commands_take_a_url_of_what_they_only_read(remote, data, teacher, zygote, tmp_path):
    assert read_classes(remote.val) == read_classes(remote.teacher) == read_classes(data.val)
    (remote.root / "names.txt").write_bytes(b"a\nb\n")
    assert read_classes(str(remote.root / "names.txt")) == ("a", "b")
    with pytest.raises(ReskdError, match=f"{remote.root}/none.txt: no readable list of class names"):
        read_classes(remote.root / "none.txt")
    lines = {}
    for name, net, videos in (("local", teacher, data.val), ("remote", remote.teacher, remote.val)):
        arguments = ["predict", net, videos, "--output", tmp_path / f"{name}.jsonl", "--set", "loader.workers=0"]
        command = zygote.start(arguments, **remote.environment)
        assert command.wait() == 0, command.said()
        lines[name] = (tmp_path / f"{name}.jsonl").read_text().replace(str(videos), "DATA")
    assert lines["local"] == lines["remote"] and lines["local"].count("\n") == 40
    page = write_report([remote.cache, remote.val, remote.root], tmp_path / "report.html")
    assert (page["caches"], page["data_sets"]) == (1, 1)
    ((what, why),) = page["problems"]
    assert what == str(remote.root) and why.startswith("no run, sweep, cache or data set is at this URL, and")
    text = (tmp_path / "report.html").read_text()
    assert str(remote.cache) in text and str(remote.val) in text
