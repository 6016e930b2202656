"""`verify-cache`: exit statuses, data sets, the teacher once more, and a repair that ends where it never broke."""

import shutil

import pytest
import torch
from click.testing import CliRunner

from cache.errors import ReskdError
from cache.group import load_manifest
from pipeline import cli
from stages.models.checkpoints import load_model, save_model
from stages.runtime import lock
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.verify_cache import verify_cache
from tests.runs import cache_config, train_config, tree


@pytest.fixture
def copy(cached, tmp_path):
    shutil.copytree(cached, tmp_path / "t.zarr")
    return tmp_path / "t.zarr"


def run(*arguments):
    """Exit status, and what was said in one line."""
    done = CliRunner(env={"COLUMNS": "999"}).invoke(cli, ["verify-cache", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def flip(file):
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


def test_a_whole_cache(data, teacher, cached):
    before = tree(cached)
    status, said = run(cached, "--data", data.train, "--recompute", 5, "--teacher", teacher)
    assert status == 0 and "no problems" in said and "3 shards, 200 clips, 2 of 2 views finished" in said
    assert tree(cached) == before


def test_data_and_teacher_come_out_of_the_config(data, teacher, cached):
    result = verify_cache(cached, recompute=3, config=cache_config(cached, data, teacher))
    assert result["problems"] == [] and result["verified"] < 0.05


def test_damage_repair_and_cache_teacher_end_in_the_undisturbed_bytes(data, teacher, cached, copy, tmp_path):
    flip(copy / "000001.tar/features/c.1.1.0.0.0.0")
    shutil.copy(copy / "000002.tar/logits/c.0.0.0", copy / "000002.tar/logits/c.0.1.0")
    (copy / "000000.tar/box/c.0.9.0").write_text("x")
    damaged = tree(copy)
    status, said = run(copy)
    assert status == 1 and tree(copy) == damaged
    assert "to redo: 000001.tar, because of features/c.1.1.0.0.0.0: its sha256 is not the one written" in said
    assert "to redo: 000002.tar, because of logits/c.0.1.0: it is logits/c.0.0.0" in said
    assert f"next: verify-cache {copy} --repair, then pipeline.py cache-teacher" in said

    status, said = run(copy, "--repair")
    assert status == 1 and "deleting: 000001.tar" in said and f"--set output={copy}" in said
    left, whole = tree(copy), tree(cached)
    assert not any(name.startswith(("000001.tar", "000002.tar", ".tmp")) for name in left)
    assert {n: d for n, d in left.items() if n != "zarr.json"}.items() <= whole.items()
    train = train_config(tmp_path / "run", data, f"data.cache={copy}", "losses.logit_kl=1")
    with pytest.raises(ReskdError, match=r"is not finished .*cache-teacher"):
        train_student(train)
    status, said = run(copy)
    assert status == 0 and "not finished: cache-teacher" in said

    assert cache_teacher(cache_config(copy, data, teacher))["clip_views"] == 2 * (80 + 40)
    assert tree(copy) == tree(cached)
    assert run(copy)[0] == 0


def test_damaged_constants_are_restored_by_cache_teacher(data, few, teacher, tmp_path):
    """Also those that were estimated."""
    config = cache_config(tmp_path / "t.zarr", few, teacher, "targets.features={codec: int8, dims: 4}", "views=1")
    cache_teacher(config)
    before = tree(config.output)
    flip(config.output / "basis/c.0.0")
    (config.output / "classifier/zarr.json").unlink()
    status, said = run(config.output, "--repair", "--recompute", 2, "--data", few.train, "--teacher", teacher)
    assert status == 1 and "restores it" in said and "basis/c.0.0, which is needed" in said and "deleting" not in said
    assert cache_teacher(config)["clip_views"] == 0
    assert tree(config.output) == before
    assert run(config.output, "--recompute", 2, "--data", few.train, "--teacher", teacher)[0] == 0


def test_a_lost_shard(data, teacher, cached, copy):
    shutil.rmtree(copy / "000002.tar")
    status, said = run(copy, "--repair")
    assert status == 1 and "to finish: 000002.tar, because of its group is lost" in said
    assert cache_teacher(cache_config(copy, data, teacher))["clip_views"] == 80
    assert tree(copy) == tree(cached)


def test_a_wrong_data_set_is_not_the_caches_fault(data, shuffled, cached, copy):
    status, said = run(copy, "--data", data.val, "--repair")
    assert (
        status == 1
        and "has other keys than the cache: it has 40 clips, the cache has 80" in said
        and "give the data set" in said
    )
    assert "other keys" in run(copy, "--data", shuffled, "--repair")[1]
    assert tree(copy) == tree(cached)


def test_a_tar_that_was_cut(data, cached, tmp_path):
    shutil.copytree(data.train, tmp_path / "data")
    tar = tmp_path / "data/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-10240])
    status, said = run(cached, "--data", tmp_path / "data")
    assert status == 1 and "000001.tar" in said and "The tar is cut" in said


def test_recompute_refuses_another_teacher_and_what_it_lacks(data, teacher, cached, tmp_path):
    net, card = load_model(teacher)
    torch.nn.init.ones_(net.head.fc.bias)
    save_model(tmp_path / "other.safetensors", net, card)
    status, said = run(cached, "--data", data.train, "--recompute", 2, "--teacher", tmp_path / "other.safetensors")
    assert status == 1 and "its weights" in said and "are not those of the cache's teacher" in said
    assert "--recompute needs --data" in run(cached, "--recompute", 2, "--teacher", teacher)[1]
    assert "--recompute needs --teacher" in run(cached, "--recompute", 2, "--data", data.train)[1]


def test_recompute_notices_targets_of_another_teacher(data, few, teacher, tmp_path):
    """A cache that is whole, under a manifest that was forged."""
    net, card = load_model(teacher)
    torch.manual_seed(0)
    torch.nn.init.normal_(net.head.fc.bias)
    save_model(tmp_path / "other.safetensors", net, card)
    config = cache_config(tmp_path / "t.zarr", few, teacher, "targets.features=null", "views=1")
    cache_teacher(config)
    forged = cache_config(tmp_path / "f.zarr", few, tmp_path / "other.safetensors", "targets.features=null", "views=1")
    cache_teacher(forged)
    for file in (config.output / "000000.tar/logits").glob("c.*"):
        shutil.copy(file, forged.output / "000000.tar/logits" / file.name)
    group, other = (c.output / "000000.tar/zarr.json" for c in (config, forged))
    for name in ("scale", "offset"):
        shutil.copytree(config.output / "000000.tar" / name, forged.output / "000000.tar" / name, dirs_exist_ok=True)
    fingerprints = [load_manifest(c.output).identity.fingerprint("000000.tar") for c in (config, forged)]
    other.write_text(group.read_text().replace(*fingerprints))
    assert run(forged.output)[0] == 0
    status, said = run(
        forged.output, "--recompute", 3, "--data", few.train, "--teacher", tmp_path / "other.safetensors"
    )
    assert status == 1 and "differ from the teacher's" in said and "hand (1)" in said


def test_a_recalibrated_teacher_recomputes(data, few, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", few, teacher, "teacher.bn=recalibrate", "views=1")
    cache_teacher(config)
    status, said = run(config.output, "--recompute", 3, "--data", few.train, "--teacher", teacher)
    assert status == 0, said


def test_what_is_no_cache_and_a_manifest_that_is_none(copy, tmp_path):
    status, said = run(tmp_path / "nowhere")
    assert status == 1 and "is not a cache (there is no such folder)" in said
    before = tree(copy)
    (copy / "zarr.json").write_text("{")
    status, said = run(copy, "--repair")
    assert status == 1 and "put it back from a copy" in said and "delete" not in said
    del before["zarr.json"]
    assert {n: d for n, d in tree(copy).items() if n != "zarr.json"} == before


def test_repair_waits_for_no_one(copy, monkeypatch):
    monkeypatch.setattr(lock, "TIMEOUT", 0)
    flip(copy / "000001.tar/logits/c.0.0.0")
    before = tree(copy)
    with lock.locked(copy):
        status, said = run(copy, "--repair")
    assert status == 1 and "in use by another process" in said and tree(copy) == before


def test_help_teaches():
    said = CliRunner().invoke(cli, ["verify-cache", "--help"]).output
    assert "exit status 0" in said and "--repair" in said and "byte for byte" in said
