"""A finished cache gets features, views and shards; what is there stays, and who reads it goes on."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cache.writer as writer
from cache.errors import ReskdError
from cache.group import load_manifest
from cache.reader import CacheReader
from stages.models.checkpoints import load_model, save_model
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.student.train_student import train_student
from stages.teacher import cache_teacher as stage
from stages.teacher.cache_teacher import cache_teacher
from tests.runs import cache_config, train_config, tree

FEATURES = "targets.features={codec: int8, dims: 8}"
NEITHER = "targets.features=null"
OLD, NEW, CLIPS = "b.tar", "a.tar", 16


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """Indexes of a folder of one tar of 16 clips, `one`, and of the same after another has come, `both`: first in order."""
    root = tmp_path_factory.mktemp("grown")
    classes, folder = open_dataset(data.train).classes, root / "tars"
    folder.mkdir()
    for split, name, index in (("val", OLD, "one"), ("train", NEW, "both")):
        prepare(data.videos / split, root / split, classes=classes, limit=CLIPS, workers=0)
        shutil.copy(root / split / "000000.tar", folder / name)
        prepare(folder, root / index, classes=classes, workers=0)
    return SimpleNamespace(one=SimpleNamespace(train=root / "one"), both=SimpleNamespace(train=root / "both"))


@pytest.fixture(scope="module")
def logits(two, teacher, tmp_path_factory):
    """Two views of one shard without features; nobody writes to it."""
    config = cache_config(tmp_path_factory.mktemp("cache") / "logits.zarr", two.one, teacher, NEITHER)
    cache_teacher(config)
    return config.output


@pytest.fixture(scope="module")
def with_features(two, teacher, tmp_path_factory):
    """Its config: two views of one shard with features, made at once; nobody writes to it."""
    config = cache_config(tmp_path_factory.mktemp("cache") / "features.zarr", two.one, teacher, FEATURES)
    cache_teacher(config)
    return config


@pytest.fixture
def copied(logits, tmp_path):
    shutil.copytree(logits, tmp_path / "t.zarr")
    return tmp_path / "t.zarr"


def chunks(tree_: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in tree_.items() if "/c." in name}


def stop_at(monkeypatch, module, name, when):
    """Ctrl-C in the call of a function whose arguments `when` knows."""
    whole = getattr(module, name)

    def stopped(*args):
        if when(*args):
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(module, name, stopped)


def test_features_and_then_a_view_are_added_as_if_made_at_once(two, teacher, with_features, copied, tmp_path):
    before, running = tree(copied), CacheReader(copied)
    config = cache_config(copied, two.one, teacher, FEATURES)
    assert cache_teacher(config, dry_run=True)["clip_views_missing"] == 2 * CLIPS
    assert tree(copied) == before
    assert cache_teacher(config, verify=20)["clip_views"] == 2 * CLIPS
    assert chunks(before).items() <= tree(copied).items() and len(chunks(before)) > 10
    assert tree(copied) == tree(with_features.output)
    assert running.block(OLD, 1, 0).logits.any()  # opened before, read after
    at_once = config.model_copy(update={"output": tmp_path / "whole.zarr"})
    shutil.copytree(with_features.output, at_once.output)
    for each in (config, at_once):
        assert cache_teacher(each.model_copy(update={"views": 3}), verify=20)["clip_views"] == CLIPS
    assert tree(copied) == tree(at_once.output)
    assert cache_teacher(config.model_copy(update={"views": 3}))["clip_views"] == 0


def test_features_and_views_and_shards_at_once(two, teacher, copied, tmp_path):
    before = tree(copied)
    config = cache_config(copied, two.both, teacher, FEATURES, "views=3")
    assert cache_teacher(config, verify=20)["clip_views"] == (2 + 1 + 3) * CLIPS
    after = tree(copied)
    assert chunks(before).items() <= after.items()
    assert cache_teacher(config)["clip_views"] == 0 and tree(copied) == after
    reader = CacheReader(copied, ("logits", "features"))
    assert all(reader.block(s, v, 0).features.any() for s in (OLD, NEW) for v in range(3))


@pytest.mark.parametrize("where", ["before the attributes", "while teaching", "before the end"])
def test_killed_on_the_way_a_rerun_ends_in_the_same_bytes(two, teacher, with_features, copied, monkeypatch, where):
    before = tree(copied)
    if where == "before the attributes":  # of the shard: its chunks are there
        stop_at(monkeypatch, writer, "write_attributes", lambda folder, _: folder.name == OLD)
    elif where == "while teaching":
        stop_at(monkeypatch, stage, "cache_shard", lambda *_: True)
    else:
        stop_at(monkeypatch, stage, "finish", lambda *_: True)
    config = cache_config(copied, two.one, teacher, FEATURES)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(config)
    monkeypatch.undo()
    assert chunks(before).items() <= tree(copied).items()
    assert load_manifest(copied).finalised_targets == ("logits",)
    assert CacheReader(copied).block(OLD, 0, 0).valid.all()
    cache_teacher(config)
    assert tree(copied) == tree(with_features.output)


def test_a_shard_is_added_and_the_old_group_stays_byte_for_byte(two, teacher, copied, tmp_path):
    before, running = tree(copied), CacheReader(copied)
    running.block(OLD, 0, 0)
    assert cache_teacher(cache_config(copied, two.both, teacher, NEITHER), verify=20)["clip_views"] == 2 * CLIPS
    after, manifest = tree(copied), load_manifest(copied)
    assert {n: d for n, d in before.items() if n != "zarr.json"}.items() <= after.items()
    assert [e.name for e in manifest.identity.shards] == [OLD, NEW] and manifest.finalised_shards == 2
    assert [e.name for e in open_dataset(two.both.train).shards] == [NEW, OLD]
    assert running.block(OLD, 1, 0).valid.all()
    cache_teacher(cache_config(tmp_path / "new.zarr", two.both, teacher, NEITHER))
    ours, theirs = (CacheReader(path).block(NEW, 1, 0) for path in (copied, tmp_path / "new.zarr"))
    assert np.array_equal(ours.logits, theirs.logits) and ours.keys == theirs.keys
    with pytest.raises(ReskdError, match=r"only in the cache.*a\.tar"):
        cache_teacher(cache_config(copied, two.one, teacher, NEITHER))
    for few in (two.one, two.both):  # a student of either
        run = train_config(tmp_path / few.train.name, few, f"data.cache={copied}", "losses.logit_kl=1", "batch_size=8")
        assert train_student(run)["steps"] == 2 * len(open_dataset(few.train).shards) * 2


def test_students_of_what_is_finished_train_while_the_cache_grows(
    two, teacher, logits, copied, tmp_path, monkeypatch, capfd
):
    """Features, a view and a shard are to come; of all that, the last view of the old shard isn't there yet."""
    stop_at(monkeypatch, stage, "cache_shard", lambda work, *_: (work.shard, len(work.views)) == (OLD, 1))
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(cache_config(copied, two.both, teacher, FEATURES, "views=3"))
    monkeypatch.undo()
    distilled = ("losses.logit_kl=1", "losses.temperature=2")

    def student(data, *changes, cache=copied, name="run"):
        return train_config(tmp_path / name, data, f"data.cache={cache}", "batch_size=8", "schedule.epochs=1", *changes)

    def refuses(match, data, *changes):
        with pytest.raises(ReskdError, match=match):
            train_student(student(data, *changes))

    nets = []
    for name, cache in (("grows", copied), ("undisturbed", logits)):
        run = student(two.one, *distilled, cache=cache, name=name)
        assert train_student(run)["steps"] == 2
        nets.append(load_model(run.output / "last.safetensors")[0].state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[1])
    refuses(r"not finished \(it lacks 1 shards, a\.tar first\).*--allow-partial", two.both, *distilled)
    refuses(r"not finished \(2 of 3 views\)", two.one, *distilled, "data.views=3")
    refuses(r"not finished \(it lacks the features of some shards\)", two.one, "losses.feature_mse=1")
    partial = student(two.both, "losses.feature_mse=1", "data.views=3")
    assert train_student(partial, allow_partial=True)["steps"] == 2
    assert "leaves out 1 of 2 shards (16 clips) that lack some of 3 views: b.tar" in " ".join(
        capfd.readouterr().err.split()
    )


def test_a_cache_grows_by_its_own_teacher_alone(two, teacher, copied, tmp_path):
    before = tree(copied)
    net, card = load_model(teacher)
    torch.nn.init.ones_(net.head.fc.bias)
    save_model(tmp_path / "other.safetensors", net, card)
    for data, changes in ((two.both, [NEITHER]), (two.one, [FEATURES]), (two.one, [NEITHER, "views=3"])):
        with pytest.raises(
            ReskdError, match=r"made by another run:\s+teacher\.weights_sha256: the cache has .*, this run"
        ):
            cache_teacher(cache_config(copied, data, tmp_path / "other.safetensors", *changes))
    with pytest.raises(ReskdError, match=r"policy\.seed: the cache has 0, this run wants 3"):
        cache_teacher(cache_config(copied, two.both, teacher, FEATURES, "policy.seed=3"))
    assert tree(copied) == before


def test_a_recalibrated_teacher_is_kept_as_it_is(two, teacher, tmp_path):
    """Its statistics are of the first shard's views, and would be others if they were estimated again."""
    path, changes = tmp_path / "t.zarr", (NEITHER, "teacher.bn=recalibrate")
    assert cache_teacher(cache_config(path, two.one, teacher, *changes, "views=1"))["clip_views"] == CLIPS
    whose, before = load_manifest(path).identity.teacher, tree(path)
    assert (
        cache_teacher(cache_config(path, two.both, teacher, *changes, "views=2"), verify=20)["clip_views"] == 3 * CLIPS
    )
    assert load_manifest(path).identity.teacher == whose
    kept = {n: d for n, d in before.items() if "/c." in n or n == ".teacher.safetensors"}
    assert len(kept) == 8 and kept.items() <= tree(path).items()
