"""Stage 1b: each clip packed once, whole or not at all; what doesn't fit is refused; students learn from it."""

import dataclasses
import io
import json
import os
import shutil
import stat
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cache.errors import ReskdError
from cache.reader import CacheReader
from cache.view import ViewPolicy
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.packs import writing as packing
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.stream.clips import ClipDataset
from stages.stream.pack_files import read_pack, write_pack
from stages.stream.pack_reader import open_pack
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.video import jpeg
from tests.media import encode_video, moving_square
from tests.runs import POLICY, cache_config, rows_of, train_config, tree


def make_videos(folder: Path, clips: int, seed: int) -> None:
    """Of two classes, brighter or darker than the other by less than the clips of a class differ."""
    noise = np.random.default_rng(seed)
    for i in range(clips):
        frames = moving_square(8, 48, 64, seed=seed + i) * 0.6 + noise.normal(20 + 40 * (i % 2), 18)
        path = folder / ("bright" if i % 2 else "dark") / f"{i:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_video(frames.clip(0, 255).astype(np.uint8)))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    """train: 32 clips of 64×48 px in 3 shards; val: 40; a teacher; its cache of two views; packs of crops and of frames."""
    root = tmp_path_factory.mktemp("small")
    for split, clips in (("train", 32), ("val", 40)):
        make_videos(root / "videos" / split, clips, seed=100 * clips)
        prepare(root / "videos" / split, root / split, clips_per_shard=12, workers=0)
    made = SimpleNamespace(root=root, train=root / "train", val=root / "val", cache=root / "t.zarr")
    train_student(train_config(root / "teacher", made, "size=32", f"policy={POLICY}"))
    made.teacher = root / "teacher" / "last.safetensors"
    cache_teacher(cache_config(made.cache, made, made.teacher, "loader.workers=0"))
    made.crops, made.all, made.all_val = root / "crops", root / "all", root / "all_val"
    pack(config_of(made, made.crops))
    pack(config_of(made, made.all, frames="all"))
    pack(config_of(made, made.all_val, cache=None, frames="all", size=24, data=made.val))
    return made


def config_of(small: SimpleNamespace, output: Path, **changes) -> PackConfig:
    """Of the crops of both stored views, for 16 px."""
    fixed = {"data": small.train, "output": output, "cache": small.cache, "size": 16, "loader": {"workers": 0}}
    return PackConfig(**fixed | changes)


# ----------------------------------------------------------------------------------------------- what is packed


def test_all_frames_are_packed_just_as_high_as_the_caches_views_need(small):
    data, made = open_dataset(small.train), open_pack(small.all)
    assert made.manifest.identity.height == 20 and made.manifest.identity.side == pytest.approx(0.8)  # scales 1, 0.8
    assert {*made.manifest.files} == {"000000.tar", "000001.tar", "000002.tar"} and made.manifest.identity.views is None
    for name in made.manifest.files:
        columns = json.loads((small.all / f"{name}.rows.json").read_bytes())
        assert columns["frames"] == [list(range(row.frames)) for row in data.rows(name)]
        assert columns["key"] == [row.key for row in data.rows(name)]


def test_what_the_cache_has_in_quarantine_is_in_the_packs(small):
    data, reader = open_dataset(small.train), CacheReader(small.cache, ())
    reader.manifest = dataclasses.replace(reader.manifest, quarantine={"000001.tar": {3: "not finite"}})
    wanted = packing.WantedPictures(reader, 2)
    (clips, *_) = list(packing.AllPictures(data, ["000001.tar"], wanted, 20, 90))
    assert [len(frames) == 0 for frames in wanted.frames_of_rows(data, "000001.tar")] == [r == 3 for r in range(12)]
    assert [clip.error for clip in clips] == [None] * 3 + ["in the cache: not finite"] and clips[3].jpegs == ()


def test_a_students_picture_of_a_stored_view_is_that_of_the_video(small):
    """At 20 px, the auto height for 16, and quality 90: 27 dB at the least (a JPEG's block is half of such a picture)."""
    data, made, reader = open_dataset(small.train), open_pack(small.all), CacheReader(small.cache)
    here, there = (ClipDataset(data, size=16, num_classes=2, cache=reader, decode=d) for d in (None, made.decode))
    asked = [(s, r, v) for s, e in enumerate(data.shards) for r in range(e.clips) for v in range(2)]
    ours, theirs = here.__getitems__(asked), there.__getitems__(asked)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.index, theirs.index)
    found = [jpeg.psnr(a.numpy(), b.numpy()) for a, b in zip(ours.clips, theirs.clips, strict=True)]
    assert min(found) > 27 and np.mean(found) > 34 and theirs.usable.all() and not theirs.fallbacks


def test_a_crop_is_the_picture_of_the_stored_view_and_of_no_other(small, tmp_path):
    """Held against that of the videos, at its own size and at a smaller one; the colours are whole, too."""
    data, made, reader = open_dataset(small.train), open_pack(small.crops), CacheReader(small.cache)
    assert (made.manifest.identity.height, made.manifest.identity.views) == (16, 2)
    common = {"size": 16, "num_classes": 2, "cache": reader, "other_renderings": [(12, None)]}
    here, there = ClipDataset(data, **common), ClipDataset(data, **common, crops=made.crop)
    asked = [(s, r, v) for s, e in enumerate(data.shards) for r in range(e.clips) for v in range(2)]
    ours, theirs = there.__getitems__(asked), here.__getitems__(asked)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.index, theirs.index)
    assert ours.usable.all() and not ours.fallbacks
    for a, b, least in (
        (ours.clips, theirs.clips, 33),
        (ours.other_renderings[12, None], theirs.other_renderings[12, None], 30),
    ):
        assert a.shape == b.shape and a.dtype == torch.uint8
        assert min(jpeg.psnr(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)) > least

    shard = data.shards[0].name
    columns = json.loads((small.crops / f"{shard}.rows.json").read_text())
    stored = np.concatenate([reader.view(shard, v).frames for v in range(2)], axis=1)
    assert columns["frames"] == stored.tolist() and set(map(len, columns["views"])) == {2}
    view = reader.view(shard, 1).view_of(5)
    made.crop(data, shard, 5, 1, view)
    for other in (dataclasses.replace(view, flip=not view.flip), dataclasses.replace(view, box=view.box * 0.99),
                  dataclasses.replace(view, frames=view.frames[::-1])):  # fmt: skip
        with pytest.raises(
            ReskdError, match=rf"shard {shard}, clip .*its crop of view 1 is of another view than the cache"
        ):
            made.crop(data, shard, 5, 1, other)
    with pytest.raises(ReskdError, match=r"view 2 is not in the pack \(it has 8 frames, those of 2 stored views\)"):
        made.crop(data, shard, 5, 2, view)


@pytest.mark.parametrize("frames", ["all", "crops"])
def test_the_same_videos_give_the_same_bytes_whoever_packs_them(small, tmp_path, frames):
    pack(config_of(small, tmp_path / "again", loader={"workers": 2}, frames=frames))
    assert tree(tmp_path / "again") == tree(getattr(small, frames))


@pytest.mark.parametrize("frames", ["all", "crops"])
def test_a_long_clip_is_decoded_in_pieces(small, tmp_path, monkeypatch, frames):
    monkeypatch.setattr(packing, "MAX_DECODED_BYTES", 3 * 3 * 64 * 48)  # bytes: of three frames
    pack(config_of(small, tmp_path / "again", frames=frames))
    assert tree(tmp_path / "again") == tree(getattr(small, frames))


@pytest.mark.parametrize("frames", ["all", "crops"])
def test_the_quality_is_the_lowest_with_the_psnr_asked_for(small, tmp_path, capsys, frames):
    asked = {q: config_of(small, tmp_path / str(q), quality=q, frames=frames) for q in (60, 61)}
    qualities = {q: pack(config, dry_run=True)["psnr"] for q, config in asked.items()}
    between = (qualities[60] + qualities[61]) / 2
    planned = pack(config_of(small, tmp_path / "p", psnr=between, frames=frames), dry_run=True)
    assert planned["quality"] == 61 and planned["psnr"] == qualities[61] and not (tmp_path / "p").exists()
    made = pack(config_of(small, tmp_path / "p", psnr=between, frames=frames))
    assert made["quality"] == 61 and made["frames"] == planned["frames"]
    assert planned["bytes"] == pytest.approx(made["bytes"], rel=0.25)
    assert "32 clips" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ReskdError, match=r"psnr 59\.0: quality 95, the highest, has \d+\.\d dB: lower psnr"):
        pack(config_of(small, tmp_path / "q", psnr=59.0))


def test_clips_smaller_than_the_height_keep_their_size_and_are_counted(small, tmp_path, capsys):
    videos = tmp_path / "videos"
    for name, side in (("a", 32), ("b", 64), ("c", 96)):
        videos.mkdir(exist_ok=True)
        (videos / f"{name}.mp4").write_bytes(encode_video(moving_square(4, side, side)))
    prepare(videos, tmp_path / "data", workers=0)
    config = {"data": tmp_path / "data", "frames": "all", "loader": {"workers": 0}}
    assert pack(PackConfig(output=tmp_path / "p", height=64, **config))["small"] == 1
    assert "1 clips are smaller than 64 px and keep their size; the first: 000000.tar/a" in capsys.readouterr().err
    assert sorted(json.loads((tmp_path / "p/000000.tar.rows.json").read_bytes())["height"]) == [32, 64, 64]
    with pytest.raises(ReskdError, match="height 97: the largest of 3 clips of .* has a shorter side of 96 px"):
        pack(PackConfig(output=tmp_path / "q", height=97, **config))
    assert pack(PackConfig(output=tmp_path / "q", size=224, **config), dry_run=True)["small"] == 3  # the auto height


def test_unreadable_clips_are_left_out_of_training_and_said(small, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "x.tar", "w") as tar:
        for i in range(12):
            video = b"no video" if i == 5 else encode_video(moving_square(8, 48, 64, seed=i))
            for ext, content in (("mp4", video), ("cls", b"%d" % (i % 2))):
                info = tarfile.TarInfo(f"k{i}.{ext}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    prepare(tmp_path / "tars", tmp_path / "data", workers=0)
    config = PackConfig(data=tmp_path / "data", output=tmp_path / "p", frames="all", size=16, loader={"workers": 0})
    assert pack(config)["quarantined"] == 1
    assert "quarantined x.tar/k5:" in capsys.readouterr().err
    # A clip that the decoder of the index could read, and the one that packed could not.
    manifest = read_pack(tmp_path / "p")
    write_pack(tmp_path / "p", replace(manifest, quarantine={"x.tar": {7: "lost", **manifest.quarantine["x.tar"]}}))
    made = SimpleNamespace(train=tmp_path / "data")
    run = train_config(tmp_path / "run", made, f"data.pack={tmp_path / 'p'}", "batch_size=5", "loader.workers=0")
    assert train_student(run)["failed_clips"] == 0 and len(rows_of(tmp_path / "run")) == 4  # 10 clips, twice
    assert "1 of 11 clips are in its quarantine and left out" in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------------------------------- killed, full, again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_killed_at_any_call_a_shard_is_whole_or_not_there_and_a_rerun_ends_alike(tmp_path, monkeypatch):
    """In the k-th call that touches the disk, for every third k, with a file half written if it writes one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "cache"))
    from kill_driver import DIED, die_at, in_child

    monkeypatch.setattr(
        os, "fsync", lambda descriptor: None
    )  # a kill loses nothing that was written: a power cut would
    make_videos(tmp_path / "videos", 4, seed=0)
    prepare(tmp_path / "videos", tmp_path / "data", clips_per_shard=2, workers=0)
    output, seen, calls = tmp_path / "pack", set(), 1
    config = PackConfig(data=tmp_path / "data", output=output, frames="all", size=8, loader={"workers": 0})
    pack(config)
    wanted = tree(output)

    def killed(k: int) -> None:
        die_at(k)
        pack(config)

    while True:
        shutil.rmtree(output, ignore_errors=True)
        calls += 3
        status, said = in_child(killed, calls)
        if status == 0:
            break
        assert status == DIED, said
        if (state := frozenset(tree(output).items()) if output.exists() else None) in seen:
            continue
        seen.add(state)
        check_left(output, wanted)
        status, said = in_child(pack, config)
        assert status == 0 and tree(output) == wanted, f"call {calls}: {said}"
    assert calls > 20 and len(seen) > 5  # the kills did fall between the steps


def check_left(output: Path, wanted: dict[str, str]) -> None:
    """A shard whose rows are there is as it will be, and a pack that says it is finished has all of them."""
    found = tree(output)
    for name in found:
        if name.endswith(".tar.rows.json"):
            shard = name.removesuffix(".rows.json")
            assert (found[name], found.get(shard)) == (wanted[name], wanted[shard]), f"{shard} is half there"
    if "pack.json" in found and json.loads((output / "pack.json").read_bytes())["finished"]:
        assert wanted.items() <= found.items()
        open_pack(output).check_files()


def test_a_full_disk_leaves_what_is_packed_and_a_rerun_goes_on(small, tmp_path):
    output = tmp_path / "p"
    output.mkdir()
    partial = output / ".000001.tar.partial"
    pack(config_of(small, tmp_path / "first"))
    (tmp_path / "first" / "pack.json").rename(output / "pack.json")
    write_pack(output, replace(read_pack(output), finished=False))
    try:
        os.mknod(partial, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # /dev/full
    except PermissionError:
        pytest.skip("no right to make a device")
    with pytest.raises(
        ReskdError, match=r"No space left on device.* 1 of 3 shards are packed and stay: .*run `pack` again"
    ):
        pack(config_of(small, output))
    with pytest.raises(ReskdError, match="not finished"):
        open_pack(output)
    assert not partial.is_char_device()
    assert pack(config_of(small, output))["clips"] == 20 and tree(output) == tree(small.crops)


def test_another_identity_is_refused_naming_every_difference(small, tmp_path):
    output = tmp_path / "p"
    pack(config_of(small, output))
    before = tree(output)
    with pytest.raises(ReskdError) as error:
        pack(config_of(small, output, quality=80, size=24, views=1))
    for name, packed, wanted in (("height", 16, 24), ("quality", 90, 80), ("views", 2, 1)):
        assert f"{name}: the pack has {packed}, this run wants {wanted}" in str(error.value)
    with pytest.raises(ReskdError, match=r"changed: 000000\.tar: .*sha256 \w+ in the pack, \w+ in this run") as error:
        pack(config_of(small, output, cache=None, frames="all", data=small.val))
    assert 'frames: the pack has "crops", this run wants "all"' in str(
        error.value
    ) and "policy.num_frames: the pack has 4, this run wants 8" in str(error.value)
    assert tree(output) == before
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    with pytest.raises(ReskdError, match="is not an empty folder and holds no pack"):
        pack(config_of(small, tmp_path / "used"))


def test_a_cache_that_does_not_fit_is_refused(small, tmp_path):
    with pytest.raises(ReskdError, match="views 3: .* has 2: lower `views`"):
        pack(config_of(small, tmp_path / "p", views=3))
    with pytest.raises(ReskdError, match="shards don't fit"):
        pack(config_of(small, tmp_path / "p", data=small.val))
    for changes, said in [
        ({"cache": None}, "give cache, or frames: all"),
        ({"cache": None, "frames": "all", "views": 2}, "views are stored views of a cache"),
        ({"policy": ViewPolicy()}, "the cache has a policy of its own"),
        ({"psnr": 35.0, "quality": 90}, "give one of them"),
    ]:
        with pytest.raises(ValidationError, match=said):
            config_of(small, tmp_path / "p", **changes)
    assert not (tmp_path / "p").exists()


# ------------------------------------------------------------------------------------------ students learn from it


def without_videos(small: SimpleNamespace, folder: Path) -> SimpleNamespace:
    """The data sets' indices alone."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for file in sorted(getattr(small, split).glob("*.json")):
            (folder / split / file.name).write_bytes(file.read_bytes())
    return SimpleNamespace(train=folder / "train", val=folder / "val")


DISTIL = ["losses.feature_mse=5", "losses.logit_kl=1", "batch_size=8", "loader.workers=0"]


@pytest.mark.parametrize("frames", ["all", "crops"])
def test_training_from_a_pack_needs_no_video_and_is_that_from_the_videos(small, tmp_path, frames):
    bare = without_videos(small, tmp_path / "bare")
    packs = [f"data.pack={getattr(small, frames)}", f"data.val_pack={small.all_val}"]
    common = [f"data.cache={small.cache}", *DISTIL]
    ours = train_student(train_config(tmp_path / "ours", bare, *common, f"data.val={bare.val}", *packs))
    theirs = train_student(train_config(tmp_path / "theirs", small, *common, f"data.val={small.val}"))
    assert ours["steps"] == theirs["steps"] == 8 and ours["failed_clips"] == 0
    for a, b in zip(rows_of(tmp_path / "ours"), rows_of(tmp_path / "theirs"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)
    with pytest.raises(ReskdError, match="missing shard"):
        train_student(train_config(tmp_path / "other", bare, *common))


def test_accuracy_from_a_pack_of_all_frames_is_that_from_the_videos(small, tmp_path):
    checkpoint = tmp_path / "run" / "last.safetensors"
    slow = ["optim.lr=0.003", "schedule.epochs=12", "schedule.val_every=12", "model.dropout=0", "loader.workers=0"]
    packs = [f"data.pack={small.all}", f"data.val={small.val}", f"data.val_pack={small.all_val}"]
    train_student(train_config(tmp_path / "run", small, f"policy={POLICY}", *slow, *packs))
    validated = rows_of(tmp_path / "run", "val")[-1]["top1"]
    scores = [
        evaluate(EvaluateConfig(checkpoint=checkpoint, data=small.val, protocol="2x3", pack=p, loader={"workers": 0}))
        for p in (None, small.all_val)
    ]
    assert 60 < scores[0]["top1"] < 100 and abs(scores[0]["top1"] - scores[1]["top1"]) <= 100 / 40
    assert abs(validated - scores[0]["top1"]) < 20  # another protocol


def test_what_does_not_fit_is_refused_before_work(small, tmp_path, capsys):
    def refused(said: str, *changes: str) -> None:
        with pytest.raises(ReskdError, match=said):
            train_student(train_config(tmp_path / "run", small, "loader.workers=0", *changes))
        assert not (tmp_path / "run").exists()

    distil = [f"data.cache={small.cache}", *DISTIL]
    refused(
        r"is a pack of other videos than .*changed: 000000\.tar: .*sha256 \w+ in the pack", f"data.pack={small.all_val}"
    )
    refused("has 2 stored views alone, and fresh views of data.train may need any", f"data.pack={small.crops}")
    refused("render_via 32: .* has finished pictures", f"data.pack={small.crops}", *distil, "render_via=32")
    pack(config_of(small, tmp_path / "one", views=1))
    refused("has 1 stored views, the run replays 2 of .*views=2", f"data.pack={tmp_path / 'one'}", *distil)
    other = cache_config(tmp_path / "o.zarr", small, small.teacher, "policy.seed=7", "loader.workers=0")
    cache_teacher(other)
    refused("packed for views of another policy", f"data.pack={small.crops}", f"data.cache={other.output}", *DISTIL)
    pack(config_of(small, tmp_path / "val", cache=None, frames="all", data=small.val, height=8))
    (tmp_path / "val" / "000001.tar").unlink()
    refused(r"000001\.tar: missing", f"data.val={small.val}", f"data.val_pack={tmp_path / 'val'}")
    refused("data.val_pack is a pack of data.val", f"data.val_pack={small.all_val}")
    refused("needs no decoded videos in memory", f"data.pack={small.all}", "loader.resident=true")
    online = f"teacher={{mode: online, checkpoint: {small.teacher}}}"
    refused("a teacher in the loop reads the videos themselves", f"data.pack={small.all}", online, *DISTIL)
    with pytest.raises(ReskdError, match="evaluation may need any"):
        evaluate(EvaluateConfig(checkpoint=small.teacher, data=small.train, pack=small.crops))
    with pytest.raises(ValidationError, match="needs no decoded videos"):
        EvaluateConfig(checkpoint=small.teacher, data=small.val, pack=small.all_val, loader={"resident": True})
    capsys.readouterr()
    plan = [f"data.pack={small.all}", *distil]
    train_student(train_config(tmp_path / "run", small, *plan), dry_run=True)
    assert "without enlarging" not in capsys.readouterr().err
    train_student(train_config(tmp_path / "run", small, *plan, "size=24"), dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "frames of 20 px serve students of up to 16 px without enlarging any crop, this student has 24 px" in said
    train_student(train_config(tmp_path / "run", small, f"data.pack={small.crops}", *distil, "size=24"), dry_run=True)
    assert "frames of 16 px serve students of up to 16 px" in " ".join(capsys.readouterr().err.split())


def test_crops_have_their_own_size_and_their_own_cache(small, tmp_path):
    with pytest.raises(ValidationError, match=r"crops have the student's size, 16 px: leave height 24 out"):
        config_of(small, tmp_path / "p", height=24)
    with pytest.raises(ValidationError, match=r"frames: crops are those of a cache's stored views: give cache"):
        config_of(small, tmp_path / "p", cache=None)
    with pytest.raises(ReskdError, match="height: the pack has 16, this run wants 24"):
        pack(config_of(small, small.crops, size=24))
