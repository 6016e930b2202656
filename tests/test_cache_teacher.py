"""Stage one: what is stored is what the teacher says, once, and nothing is mixed or lost."""

import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.manifest import bytes_of_clip_view
from cache.reader import CacheReader
from cache.view import ViewPolicy, sample_view
from stages.models.checkpoints import load_model, save_model
from stages.prepare.prepare import prepare
from stages.runtime.lock import locked
from stages.shards.dataset import open_dataset
from stages.student.train_student import train_student
from stages.teacher import cache_teacher as stage
from stages.teacher.audit import verify_targets
from stages.teacher.cache_teacher import cache_teacher
from stages.video.decode import decode_frames
from stages.video.render import render
from tests.runs import cache_config, train_config, tree


def test_targets_are_the_teachers_on_the_stored_views(data, teacher, cached):
    dataset, reader = open_dataset(data.train), CacheReader(cached, ("logits", "features"))
    net, _ = load_model(teacher)
    policy = ViewPolicy(num_frames=4, scales=(1.0, 0.8), flip=0.0)
    for shard in ("000000.tar", "000002.tar"):
        for view in range(2):
            block = reader.block(shard, view, 0)
            for r in (0, 17, 39):
                row = dataset.rows(shard)[r]
                drawn = sample_view(policy, shard=shard, key=row.key, index=view, num_frames=8, aspect=1.0)
                assert block.keys[r] == row.key
                assert (block.frames[r] == drawn.frames).all() and (block.box[r] == drawn.box).all()
                pictures, _ = decode_frames(dataset.read(shard, r), drawn.frames, row.decoder)
                with torch.no_grad():
                    output = net(torch.from_numpy(render(pictures, drawn, 32))[None])
                logits = output.logits[0].numpy()
                assert np.abs(block.logits[r] - logits).max() <= np.ptp(logits) / 255 / 2 + 1e-4
                features = output.features[0].numpy()
                assert np.abs(block.features[r] - features).max() <= 1e-3 * (1 + np.abs(features).max())


def test_the_manifest_names_all_that_decides_the_content(data, teacher, cached):
    identity = load_manifest(cached).identity
    assert identity.teacher["size"] == 32 and identity.teacher["dtype"] == "float32"
    assert identity.teacher["model"]["backbone"] == "resnet18"
    assert identity.targets == {
        "logits": {"codec": "uint8", "width": 40},
        "features": {
            "codec": "float16",
            "grid": [4, 4, 4],
            "width": 16,
            "map": [4, 4, 4, 16],
            "sample": None,
            "constants_sha256": hashlib.sha256().hexdigest(),  # of none
        },
    }
    assert [(e.name, e.clips) for e in identity.shards] == [("000000.tar", 80), ("000001.tar", 80), ("000002.tar", 40)]
    assert load_manifest(cached).finalised == 2 and load_manifest(cached).packages["torch"]


def test_workers_change_nothing(data, teacher, cached, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher, "loader.workers=2")
    cache_teacher(config)
    assert tree(config.output) == tree(cached)


def test_a_rerun_does_nothing_and_more_views_are_added_in_place(few, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", few, teacher)
    assert cache_teacher(config)["clip_views"] == 80
    before = tree(config.output)
    rerun = cache_teacher(config, verify=20)
    assert rerun["clip_views"] == 0 and rerun["verified"] < 0.05 and tree(config.output) == before
    running = CacheReader(config.output)
    grown = cache_teacher(config.model_copy(update={"views": 3}))
    assert grown["clip_views"] == 40
    after = tree(config.output)
    chunks = [name for name in before if not name.endswith("zarr.json")]
    assert len(chunks) > 15 and all(after[name] == before[name] for name in chunks)
    assert load_manifest(config.output).finalised == 3
    assert running.block("000000.tar", 1, 0).valid.all()  # opened before it grew
    whole = cache_config(tmp_path / "whole.zarr", few, teacher, "views=3")
    cache_teacher(whole)
    grown, fresh = (CacheReader(c.output, ("logits", "features")).block("000000.tar", 2, 0) for c in (config, whole))
    assert (grown.logits == fresh.logits).all() and (grown.features == fresh.features).all()


def test_dry_run_prints_and_writes_nothing(data, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", data, teacher)
    plan = cache_teacher(config, dry_run=True)
    assert plan["clip_views_missing"] == 400 and plan["bytes_of_clip_view"] == 16 + 16 + 2 + 48 + 2 * 4 * 4 * 4 * 16
    deep = cache_config(tmp_path / "not" / "there" / "t.zarr", data, teacher)
    assert cache_teacher(deep, dry_run=True)["clip_views_missing"] == 400
    assert not list(tmp_path.iterdir())


def test_planned_bytes_bound_the_real_ones(cached):
    manifest = load_manifest(cached)
    chunks = sum(p.stat().st_size for p in cached.rglob("*") if p.is_file() and p.name != "zarr.json")
    assert chunks <= 400 * bytes_of_clip_view(manifest.identity) * 1.05


def test_verify_notices_other_pictures(data, few, teacher, tmp_path):
    """The videos of a shard change under the same names after caching (and are indexed anew, with a forged digest)."""
    config = cache_config(tmp_path / "t.zarr", few, teacher)
    cache_teacher(config)
    other, manifest = open_dataset(data.train), load_manifest(config.output)
    reader, (device, _) = CacheReader(config.output, ("logits",)), (torch.device("cpu"), None)
    net, _ = stage.load_teacher(config, open_dataset(data.val), device)
    with pytest.raises(ReskdError, match="differ from the teacher's"):
        swapped = _Swapped(open_dataset(data.val), other)
        verify_targets(swapped, manifest, reader, net, 10)


class _Swapped:
    """A data set whose videos are another's."""

    def __init__(self, data, videos):
        self.shards, self.rows, self._videos = data.shards, data.rows, videos

    def read(self, shard, row):
        return self._videos.read(shard, row)


# ---- accuracy ----


def test_reports_the_teachers_accuracy_and_warns_near_chance(data, few, teacher, tmp_path, capfd):
    data, changes = few, ("targets.features=null",)
    result = cache_teacher(cache_config(tmp_path / "a.zarr", data, teacher, *changes))
    dataset, reader = open_dataset(data.train), CacheReader(tmp_path / "a.zarr")
    hits = [int(logits.argmax()) == row.labels[0] for e in dataset.shards for v in range(2)
            for logits, row in zip(reader.view(e.name, v).logits, dataset.rows(e.name), strict=True)]  # fmt: skip
    assert result["top1"] == pytest.approx(100 * np.mean(hits))
    net, card = load_model(teacher)
    torch.nn.init.zeros_(net.head.fc.weight)
    torch.nn.init.zeros_(net.head.fc.bias)
    save_model(tmp_path / "chance.safetensors", net, card)
    capfd.readouterr()
    cache_teacher(cache_config(tmp_path / "b.zarr", data, tmp_path / "chance.safetensors", *changes))
    assert "near chance" in capfd.readouterr().err


# ---- refusals ----


def refuses(config, match):
    with pytest.raises(ReskdError, match=match):
        cache_teacher(config)


def test_refuses_to_mix(data, few, teacher, cached, tmp_path):
    """Another teacher, policy, decoder, batch, or shard list: both sides are named, and nothing is touched."""
    shutil.copytree(cached, tmp_path / "t.zarr")
    before = tree(tmp_path / "t.zarr")
    other = tmp_path / "other.safetensors"
    net, card = load_model(teacher)
    torch.nn.init.ones_(net.head.fc.bias)
    save_model(other, net, card)

    def changed(*changes, data=data, teacher=teacher):
        return cache_config(tmp_path / "t.zarr", data, teacher, *changes)

    refuses(changed(teacher=other), "weights_sha256")
    refuses(changed("policy.seed=1"), r"policy\.seed.*0.*1")
    refuses(changed("teacher.batch_size=8"), r"batch_size.*16.*8")
    refuses(changed("targets.logits=float16"), "uint8.*float16")
    refuses(changed("teacher.size=24"), "size.*32.*24")
    refuses(changed(data=few), "shard")
    manifest = json.loads((tmp_path / "t.zarr" / "zarr.json").read_text())
    manifest["attributes"]["identity"]["decoder"] = "decord 0.5.0"
    (tmp_path / "t.zarr" / "zarr.json").write_text(json.dumps(manifest))
    refuses(changed(), r"decord 0\.5\.0.*decord|decord.*decord 0\.5\.0")
    del before["zarr.json"]
    assert {k: v for k, v in tree(tmp_path / "t.zarr").items() if k != "zarr.json"} == before


def test_refuses_a_cache_of_another_format(data, teacher, cached, tmp_path):
    shutil.copytree(cached, tmp_path / "t.zarr")
    file = tmp_path / "t.zarr" / "zarr.json"
    manifest = json.loads(file.read_text())
    manifest["attributes"]["format"] = 99
    file.write_text(json.dumps(manifest))
    refuses(cache_config(tmp_path / "t.zarr", data, teacher), "format version 99")
    with pytest.raises(ReskdError, match="format version 99"):
        train_student(train_config(tmp_path / "run", data, f"data.cache={tmp_path / 't.zarr'}"))


def test_refuses_a_teacher_of_another_class_order(data, teacher, tmp_path):
    net, card = load_model(teacher)
    swapped = (card.classes[1], card.classes[0], *card.classes[2:])
    save_model(tmp_path / "t.safetensors", net, type(card)(**{**card.__dict__, "classes": swapped}))
    refuses(
        cache_config(tmp_path / "t.zarr", data, tmp_path / "t.safetensors"),
        "class 0 is .*--class-order .*t.safetensors",
    )


def test_refuses_before_work(data, teacher, tmp_path, monkeypatch):
    refuses(cache_config(tmp_path / "t.zarr", data, tmp_path / "nothing.safetensors"), "nothing.safetensors")
    refuses(cache_config(tmp_path / "t.zarr", data, teacher, "policy.num_frames=8"), "takes 4 frames.*draws 8")
    (tmp_path / "garbage.safetensors").write_bytes(b"no tensors here")
    refuses(cache_config(tmp_path / "t.zarr", data, tmp_path / "garbage.safetensors"), "garbage")
    (tmp_path / "file").write_text("")
    refuses(cache_config(tmp_path / "file" / "t.zarr", data, teacher), "can't be written")
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    refuses(cache_config(tmp_path / "t.zarr", data, teacher), r"GB are missing.*targets\.features")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["file", "garbage.safetensors"]


def test_refuses_a_folder_in_use(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.runtime.lock.TIMEOUT", 0.5)  # seconds
    with locked(tmp_path / "t.zarr"):
        refuses(cache_config(tmp_path / "t.zarr", data, teacher), "in use by another process")


# ---- quarantine ----


@pytest.fixture(scope="module")
def with_bad_clips(data, tmp_path_factory):
    """A foreign shard: twenty good videos, an empty one, a truncated one, noise, a text."""
    videos = [p.read_bytes() for p in sorted((data.videos / "val").rglob("*.mp4"))[:20]]
    bad = {
        "empty": b"",
        "cut": videos[0][: len(videos[0]) // 2],
        "noise": np.random.default_rng(0).bytes(3000),
        "text": b"hi",
    }
    members = {f"clip{i:02d}": v for i, v in enumerate(videos)} | bad
    root = tmp_path_factory.mktemp("bad")
    folder = root / "foreign"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key in sorted(members):
            for name, content in ((f"{key}.mp4", members[key]), (f"{key}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    prepare(folder, root / "index", classes=open_dataset(data.train).classes, workers=0)
    return type(data)(train=root / "index", val=data.val)


def test_unreadable_clips_are_quarantined_and_left_out(with_bad_clips, teacher, tmp_path, capfd):
    config = cache_config(tmp_path / "t.zarr", with_bad_clips, teacher)
    assert cache_teacher(config, verify=24)["quarantined"] == 4
    assert "verified 20 clip·views" in capfd.readouterr().err  # not those that have nothing to verify
    dataset = open_dataset(with_bad_clips.train)
    keys = [row.key for row in dataset.rows("a.tar")]
    stored = load_manifest(config.output).quarantine["a.tar"]
    assert sorted(keys[r] for r in stored) == ["cut", "empty", "noise", "text"] and all(stored.values())
    block = CacheReader(config.output).block("a.tar", 0, 0)
    assert [k for k, ok in zip(block.keys, block.valid, strict=True) if not ok] == ["cut", "empty", "noise", "text"]
    result = train_student(
        train_config(
            tmp_path / "run", with_bad_clips, f"data.cache={config.output}", "losses.logit_kl=1", "batch_size=20"
        )
    )
    assert result["failed_clips"] == 0 and result["steps"] == 2


def test_a_teacher_that_is_never_finite_is_an_error_beside_unreadable_clips_too(with_bad_clips, teacher, tmp_path):
    net, card = load_model(teacher)
    torch.nn.init.constant_(net.head.fc.weight, 3e38)
    save_model(tmp_path / "huge.safetensors", net, card)
    config = cache_config(tmp_path / "t.zarr", with_bad_clips, tmp_path / "huge.safetensors", "targets.features=null")
    refuses(config, r"shard a\.tar: the teacher's answer is not finite for any of its 20 clips.*checkpoint")
    assert not (config.output / "a.tar").exists()


def test_strict_makes_it_fatal(with_bad_clips, teacher, tmp_path):
    with pytest.raises(ReskdError, match="a.tar, clip '.*--strict"):
        cache_teacher(cache_config(tmp_path / "t.zarr", with_bad_clips, teacher), strict=True)
    assert load_manifest(tmp_path / "t.zarr").finalised == 0


def test_missing_and_cut_shards_are_named(data, teacher, tmp_path):
    shutil.copytree(data.train, tmp_path / "data")
    broken = type(data)(train=tmp_path / "data")
    whole = (tmp_path / "data" / "000001.tar").read_bytes()
    for content in (None, b"", whole[: len(whole) // 2], whole[:-10240]):
        (tmp_path / "data" / "000001.tar").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "data" / "000001.tar").write_bytes(content)
        refuses(cache_config(tmp_path / "t.zarr", broken, teacher, "targets.features=null", "views=1"), r"000001\.tar")
    (tmp_path / "data" / "000001.tar").write_bytes(whole)
    config = cache_config(tmp_path / "t.zarr", broken, teacher, "targets.features=null", "views=1")
    assert cache_teacher(config)["clip_views"] in (120, 200)


def test_a_shuffled_shard_is_refused_at_the_join(data, shuffled, cached, tmp_path):
    """The same clips in another order: another data set, whose targets would be another clip's."""
    other = type(data)(train=shuffled)
    with pytest.raises(ReskdError, match="other keys"):
        train_student(train_config(tmp_path / "run", other, f"data.cache={cached}", "losses.logit_kl=1"))
