"""From videos, lists and foreign tars to a data set; what is unreadable, wrong or interrupted on the way."""

import io
import json
import os
import re
import resource
import shutil
import signal
import tarfile
import time
from functools import cache, partial
from pathlib import Path

import psutil
import pytest

from cache.errors import ReskdError
from stages.prepare.clips import safe_keys
from stages.prepare.prepare import prepare
from stages.prepare.probe_videos import crashed_probe, probe_task
from stages.prepare.workers import Workers
from stages.shards.classes import class_table
from stages.shards.dataset import Dataset
from stages.shards.stream_shard import stream_shard
from stages.video.decode import decode_frames
from tests.media import encode_audio, encode_video, moving_square
from tests.zygote import Zygote


@cache
def clip(seed: int, frames: int = 6) -> bytes:
    return encode_video(moving_square(frames, 32, 48, seed))


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def class_folders(folder: Path, classes: str = "xyz", clips: int = 3) -> Path:
    for c, name in enumerate(classes):
        for i in range(clips):
            write(folder / name / f"v{i}.mp4", clip(clips * c + i))
    return folder


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def labels(data: Dataset) -> dict[str, tuple[int, ...]]:
    return {row.key: row.labels for entry in data.shards for row in data.rows(entry.name)}


def quarantine(folder: Path) -> dict[str, str]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return {line["path"]: line["reason"] for line in map(json.loads, lines)}


make = partial(prepare, workers=0)


# Videos


def test_class_folders_become_shards_of_the_same_bytes(tmp_path):
    source = class_folders(tmp_path / "videos")
    data = make(source, tmp_path / "out", clips_per_shard=4)
    assert data.classes == ("x", "y", "z")
    assert [(e.name, e.clips) for e in data.shards] == [("000000.tar", 4), ("000001.tar", 4), ("000002.tar", 1)]
    seen = []
    for entry in data.shards:
        with tarfile.open(tmp_path / "out" / entry.name) as tar:
            for number, row, video in stream_shard(data, entry.name):
                name, stem = row.key.split("_")
                assert video == data.read(entry.name, number) == (source / name / f"{stem}.mp4").read_bytes()
                beside = json.loads(tar.extractfile(f"{row.key}.json").read())
                assert beside["label_names"] == [name] and row.labels == tuple(beside["labels"]) == ("xyz".index(name),)
                assert (row.frames, row.width, row.height) == (6, 48, 32) and row.aspect == 1.5
                assert beside["source"] == f"{name}/{stem}.mp4" and beside["fps"] == 8 and beside["duration"] > 0
                frames, served = decode_frames(video, [0, 5], row.decoder)
                assert frames.shape == (2, 32, 48, 3) and served == row.decoder
                seen.append(row.key)
    assert len(set(seen)) == 9 and seen != sorted(seen)  # shuffled over the shards
    assert quarantine(tmp_path / "out") == {} and not (tmp_path / "out/.prepare").exists()


def test_files_of_rarer_containers_are_videos_too(tmp_path):
    forms = {"3gp": "libx264", "asf": "msmpeg4", "ogv": "libvpx", "ts": "libx264", "vob": "mpeg2video"}
    containers = {"ogv": "ogg", "ts": "mpegts"}
    for ext, codec in forms.items():
        data = encode_video(moving_square(6, 32, 48), container=containers.get(ext, ext), codec=codec)
        write(tmp_path / "videos/x" / f"of_{ext}.{ext}", data)
    data = make(tmp_path / "videos", tmp_path / "out")
    assert labels(data) == {f"x_of_{ext}": (0,) for ext in forms} and not quarantine(tmp_path / "out")


def test_the_bytes_depend_on_the_seed_alone_not_on_workers_or_place(tmp_path):
    source = class_folders(tmp_path / "videos")
    make(source, tmp_path / "one", clips_per_shard=4)
    shutil.copytree(source, tmp_path / "copy")
    prepare(tmp_path / "copy", tmp_path / "two", clips_per_shard=4, workers=2)
    make(source, tmp_path / "three", clips_per_shard=4, seed=1)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert tree(tmp_path / "one")["000000.tar"] != tree(tmp_path / "three")["000000.tar"]


def test_unreadable_videos_are_listed_with_reasons_and_nothing_else_is_lost(tmp_path):
    source = class_folders(tmp_path / "videos", "xy")
    bad = {
        "empty": b"",
        "cut": clip(0)[: len(clip(0)) // 2],
        "garbage": bytes(range(256)) * 40,
        "audio": encode_audio(),
        "text": b"not a video\n" * 50,
    }
    for name, data in bad.items():
        write(source / "x" / f"{name}.mp4", data)
    write(source / "x" / "notes.txt", b"no video, and not taken for one")
    write(source / "x" / "._v0.mp4", b"what a Mac leaves behind")
    (source / "x" / "gone.mp4").symlink_to("nowhere.mp4")
    data = prepare(source, tmp_path / "out", workers=2)
    reasons = quarantine(tmp_path / "out")
    assert sorted(reasons) == sorted(f"x/{name}.mp4" for name in [*bad, "gone"])
    assert "0 bytes" in reasons["x/empty.mp4"] and "no such file" in reasons["x/gone.mp4"] and all(reasons.values())
    assert sorted(labels(data)) == ["x_v0", "x_v1", "x_v2", "y_v0", "y_v1", "y_v2"]
    assert data.quarantine == {}


def test_a_shard_is_full_by_bytes_too_and_may_hold_nothing_readable(tmp_path):
    for i in range(4):
        write(tmp_path / "videos" / f"{i}.mp4", clip(i) if i else b"")
    data = make(tmp_path / "videos", tmp_path / "out", max_shard_bytes=1)
    assert [e.clips for e in data.shards] == [1, 1, 1] and data.classes == ()
    assert list(quarantine(tmp_path / "out")) == ["0.mp4"]
    assert labels(data) == {"1": (), "2": (), "3": ()}  # no class folders: unlabelled
    assert [rows.tolist() for rows in data.usable_rows()] == [[0], [0], [0]]


def test_no_readable_clip_at_all_is_an_error(tmp_path):
    write(tmp_path / "videos/x/a.mp4", b"")
    with pytest.raises(ReskdError, match=r"none of 1 clips is readable.*x/a\.mp4: .*0 bytes"):
        make(tmp_path / "videos", tmp_path / "out")
    assert quarantine(tmp_path / "out") and not (tmp_path / "out/index.json").exists()


def test_a_clip_that_crashes_its_decoder_costs_that_clip_alone(tmp_path):
    good = probe_task(write(tmp_path / "a.mp4", clip(0)))
    crash = partial(os._exit, 11)
    with Workers(2) as workers:
        found = list(workers.map([good] * 3 + [crash] + [good] * 9 + [crash, good], crashed_probe))
    assert [probe.error for probe in found] == [
        None if i not in (3, 13) else "crashes the process that decodes it" for i in range(15)
    ]


def test_keys_are_safe_unique_and_do_not_depend_on_the_other_clips():
    names = [
        "a/b.mp4",
        "a_b.mp4",
        "a.b.mp4",
        "x.y/z w.webm",
        "日本/猫.mp4",
        "k" * 300 + "1.mp4",
        "c.mp4",
        "c.avi",
        "__d__.mp4",
    ]
    keys = safe_keys(names)
    assert len(set(keys)) == len(names) and all(key.isascii() and len(key) <= 80 for key in keys)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for key in keys)
    assert keys[3] == "x_y_z_w" and keys[8] == "d" and keys[0].startswith("a_b-")
    assert dict(zip(names, keys, strict=True)) == dict(zip(names[::-1], safe_keys(names[::-1]), strict=True))


# Annotations


def csv(path: Path, *lines: str) -> Path:
    return write(path, "\n".join(lines).encode())


def test_csv_with_names_several_labels_and_unlabelled_clips(tmp_path):
    for i in range(4):
        write(tmp_path / "videos" / f"{i}.mp4", clip(i))
    lines = [
        "Path,label",
        "0.mp4,run",
        '1.mp4,"jump, high",run',
        "",
        "2.mp4,",
        "3.mp4, run ,run",
        "4.mp4,run",
        "5.txt,run",
    ]
    data = make(tmp_path / "videos", tmp_path / "out", annotations=csv(tmp_path / "a.csv", *lines))
    assert data.classes == ("jump, high", "run")
    assert labels(data) == {"0": (1,), "1": (0, 1), "2": (), "3": (1,)}
    reasons = quarantine(tmp_path / "out")
    assert "no such file" in reasons["4.mp4"] and "line 7" in reasons["4.mp4"] and "5.txt" in reasons


def test_a_video_that_a_csv_of_the_folder_leaves_out_is_told(tmp_path, capsys):
    for name in ("a.mp4", "deep/b.mp4"):
        write(tmp_path / "videos" / name, clip(0))
    listed = csv(tmp_path / "a.csv", "./a.mp4,run")
    make(tmp_path / "videos", tmp_path / "out", annotations=listed)
    assert quarantine(tmp_path / "out") == {"deep/b.mp4": "not listed in a.csv"}
    assert "1 unlisted" in capsys.readouterr().err


def test_a_csv_alone_has_paths_relative_to_itself_and_integers_are_class_numbers(tmp_path):
    write(tmp_path / "videos/a.mp4", clip(0)), write(tmp_path / "videos/b.mp4", clip(1))
    data = make(csv(tmp_path / "list.csv", "videos/a.mp4,2", "videos/b.mp4,0"), tmp_path / "out")
    assert data.classes == ("0", "1", "2") and labels(data) == {"videos_a": (2,), "videos_b": (0,)}
    classes = csv(tmp_path / "classes.txt", "walk", "run", "jump", "")
    data = make(tmp_path / "list.csv", tmp_path / "named", classes=classes)
    assert data.classes == ("walk", "run", "jump") and labels(data) == {"videos_a": (2,), "videos_b": (0,)}
    data = make(csv(tmp_path / "list.csv", "videos/a.mp4,run"), tmp_path / "ordered", classes=["walk", "run"])
    assert labels(data) == {"videos_a": (1,)}


@pytest.mark.parametrize("header", ["path,label", "video,Label", "filename,class", "Video_Path,Class Name"])
def test_a_header_is_no_clip_and_no_class(tmp_path, header):
    write(tmp_path / "a.mp4", clip(0))
    assert make(csv(tmp_path / "l.csv", header, "a.mp4,x"), tmp_path / "out").classes == ("x",)
    assert not quarantine(tmp_path / "out")


def test_class_numbers():
    found = {"10": "", "9": ""}
    assert class_table(found, None, names=False) == (tuple(map(str, range(11))), {"10": 10, "9": 9})
    assert class_table(found, None, names=True) == (("9", "10"), {"9": 0, "10": 1})  # folders called so
    assert class_table(found, ["10", "9"], names=False)[1] == {"10": 0, "9": 1}  # a name before a position
    assert class_table({"b": "", "a": ""}, None, names=False)[0] == ("a", "b")
    assert class_table({}, None, names=False) == ((), {})


BAD_LISTS = {
    "no label column": (["a.mp4,x", "b.mp4"], None, "line 2: 'b.mp4' has no label. Write"),
    "a clip twice": (["a.mp4,x", "./a.mp4,y"], None, "line 2: './a.mp4' is listed before, in line 1"),
    "no path": ([",x"], None, "line 1: no path"),
    "out of range": (["a.mp4,0", "b.mp4,2"], ["x", "y"], "line 2: label 2 is out of range, 0 to 1"),
    "negative": (["a.mp4,-1"], None, "line 1: label -1 is out of range"),
    "an id for a label": (["a.mp4,123456789"], None, "line 1: label 123456789 is out of range"),
    "unknown name": (
        ["a.mp4,runing"],
        ["walking", "running"],
        "'runing' is none of the 2 classes. Did you mean 'running'",
    ),
    "class twice": (["a.mp4,x"], ["x", "y", "x"], "'x' is listed twice"),
    "nothing": (["path,label"], None, "no clip in it"),
}


@pytest.mark.parametrize("lines, classes, message", BAD_LISTS.values(), ids=BAD_LISTS)
def test_bad_lists_are_refused_before_any_work(tmp_path, lines, classes, message):
    write(tmp_path / "a.mp4", clip(0)), write(tmp_path / "b.mp4", clip(1))
    with pytest.raises(ReskdError) as caught:
        make(csv(tmp_path / "list.csv", *lines), tmp_path / "out", classes=classes)
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(ReskdError, match="no such folder"):
        make(tmp_path / "nowhere", tmp_path / "out")
    source = tmp_path / "videos"
    source.mkdir()
    with pytest.raises(ReskdError, match="neither videos nor tars"):
        make(source, tmp_path / "out")
    write(source / "x/a.mp4", clip(0)), write(source / "b.mp4", clip(1))
    with pytest.raises(ReskdError, match=r"b\.mp4: a video beside class folders"):
        make(source, tmp_path / "out")
    tar_of(source / "x/000.tar", {"k.mp4": clip(0)})
    (source / "b.mp4").unlink()
    with pytest.raises(ReskdError, match=r"both videos \(x/a\.mp4\) and tars \(x/000\.tar\)"):
        make(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Shards made elsewhere


def foreign(folder: Path) -> Path:
    """As video2dataset writes: nested tars, key.mp4 + key.json + key.txt (a caption)."""
    for t in range(2):
        members = {}
        for i in range(3):
            fields = {"key": f"{t}{i}", "status": "success", "label": ["cat", "dog"][i % 2] if i < 2 else None}
            members[f"{t}{i}.json"] = json.dumps(fields).encode()
            members[f"{t}{i}.mp4"] = clip(3 * t + i) if (t, i) != (1, 0) else b"broken"
            members[f"{t}{i}.txt"] = f"a caption of {i}".encode()
        tar_of(folder / f"part{t}" / "00000.tar", members)
    return folder


@pytest.mark.parametrize("place", ["same", "below", "beside"])
def test_foreign_shards_are_indexed_where_they_are(tmp_path, place):
    source = foreign(tmp_path / "here" / "tars")
    before = tree(source)
    output = {"same": source, "below": source / "index", "beside": tmp_path / "here" / "index"}[place]
    data = prepare(source, output, workers=2)
    assert {name: tree(source)[name] for name in before} == before
    assert not any(name.endswith(".tar") for name in tree(output)) or place == "same"
    assert data.classes == ("cat", "dog")
    assert labels(data) == {"00": (0,), "01": (1,), "02": (), "10": (0,), "11": (1,), "12": ()}
    assert list(quarantine(output)) == ["part1/00000.tar/10.mp4"]
    assert list(data.quarantine) == ["part1/00000.tar"] and list(data.quarantine["part1/00000.tar"]) == [0]
    assert data.rows("part1/00000.tar")[0].error and [r.tolist() for r in data.usable_rows()] == [[0, 1, 2], [1, 2]]
    (tmp_path / "here").rename(tmp_path / "there")  # both together: the index knows its tars by relative place
    moved = Path(str(output).replace("/here/", "/there/"))
    data = make(Path(str(source).replace("/here/", "/there/")), moved)
    assert [video for _, _, video in stream_shard(data, "part0/00000.tar")] == [clip(0), clip(1), clip(2)]


def test_labels_of_foreign_shards(tmp_path):
    def index(name: str, samples: list[dict[str, bytes]], **options) -> Dataset:
        members = {f"{i}.{ext}": data for i, s in enumerate(samples) for ext, data in (s | {"mp4": clip(i)}).items()}
        tar_of(tmp_path / name / "0.tar", members)
        return make(tmp_path / name, tmp_path / name, **options)

    assert labels(index("cls", [{"cls": b"1"}, {"cls": b"0\n"}])) == {"0": (1,), "1": (0,)}
    several = index("several", [{"json": b'{"labels": [2, 0]}'}, {"json": b'{"labels": []}'}])
    assert labels(several) == {"0": (2, 0), "1": ()} and several.classes == ("0", "1", "2")
    texts = [{"txt": b"dog"}, {"txt": b"cat"}]
    assert labels(index("captions", texts)) == {"0": (), "1": ()}
    assert labels(index("texts", texts, classes=["dog", "cat"])) == {"0": (0,), "1": (1,)}
    for name, samples, options, message in [
        ("unknown", [{"txt": b"dog"}, {"txt": b"a bird"}], {"classes": ["dog"]}, "clip '1': label 'a bird' is none of"),
        ("range", [{"cls": b"0"}, {"cls": b"3"}], {"classes": ["a", "b"]}, "clip '1': label 3 is out of range, 0 to 1"),
        ("lacking", [{"cls": b"0"}, {}], {}, "clip '1' has no label: others have it as 'cls'"),
        ("json", [{"json": b"{"}], {}, "member '0.json': not json"),
        ("object", [{"json": b"[1]"}], {}, "member '0.json': not a JSON object"),
        ("kind", [{"json": b'{"label": {"a": 1}}'}], {}, "member '0.json': {'a': 1} is no label"),
    ]:
        with pytest.raises(ReskdError) as caught:
            index(name, samples, **options)
        assert message in str(caught.value) and "0.tar" in str(caught.value)
        assert os.listdir(tmp_path / name) == ["0.tar"]  # refused before any work


def test_a_bad_tar_is_refused_before_any_work(tmp_path):
    source = foreign(tmp_path / "tars")
    tar = source / "part1/00000.tar"
    os.truncate(tar, tar.stat().st_size // 2 // 512 * 512)
    with pytest.raises(ReskdError, match=r"part1/00000\.tar: "):
        make(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_that_prepare_wrote_can_be_indexed_anew(tmp_path):
    first = make(class_folders(tmp_path / "videos"), tmp_path / "one", clips_per_shard=4)
    (tmp_path / "tars").mkdir()
    for entry in first.shards:
        shutil.copy(tmp_path / "one" / entry.name, tmp_path / "tars")
    again = make(tmp_path / "tars", tmp_path / "index")
    assert again.shards == first.shards and again.classes == first.classes
    assert [again.rows(e.name) for e in first.shards] == [first.rows(e.name) for e in first.shards]


# Reruns and kills


def test_a_finished_output_is_opened_without_work(tmp_path):
    source, output = class_folders(tmp_path / "videos"), tmp_path / "out"
    first = make(source, output)
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    again = make(source, output)
    assert again.shards == first.shards and times == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    (output / "000000.tar").unlink()
    with pytest.raises(ReskdError, match=r"000000\.tar: missing shard"):
        make(source, output)


def test_an_output_made_from_something_else_is_refused_naming_the_difference(tmp_path):
    source, output = class_folders(tmp_path / "videos"), tmp_path / "out"
    make(source, output)
    before = tree(output)
    for options, message in (
        ({"seed": 1}, "seed: the data set has 0, this run wants 1"),
        ({"classes": ["x", "y", "z"]}, "classes: the data set has null, this run wants"),
    ):
        with pytest.raises(ReskdError, match=message):
            make(source, output, **options)
    write(source / "x/new.mp4", clip(20))
    with pytest.raises(
        ReskdError, match=r"items: the data set has 9, this run wants 10.*Choose another output, or delete"
    ):
        make(source, output)
    with pytest.raises(ReskdError, match=r"source: .*tar shards"):
        make(output, output)
    assert tree(output) == before
    write(tmp_path / "used/thesis.txt", b"")
    with pytest.raises(ReskdError, match=r"not empty, it holds thesis\.txt"):
        make(source, tmp_path / "used")
    with pytest.raises(ReskdError, match=r"thesis\.txt: a file"):
        make(source, tmp_path / "used/thesis.txt")


# Runs in a process of its own, which has decoded nothing and forks a child for each try: decord's threads are not forked.
KILLS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
from stages.prepare.prepare import prepare
source, output, mode, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
rename = os.replace

def start(keep=False):
    child = os.fork()
    if child:
        return child
    count = 0
    def kept():  # what a kill now would leave
        nonlocal count
        shutil.copytree(output, f"{output}.{count}")
        count += 1
    def keeping(*names):
        kept()
        rename(*names)
        if os.path.basename(names[1]) == "index.json":
            kept()
    if keep:
        os.replace = keeping
    prepare(source, output, workers=0, **options)
    os._exit(0)

def finish(name):
    work = output / ".prepare/notes"
    names = [p.relative_to(work).as_posix()[:-5] for p in work.rglob("*.tar.json")]
    rows = [output / f"{n}.rows.json" for n in names if (output / f"{n}.rows.json").exists()]
    before = [p.stat().st_mtime_ns for p in rows]
    assert os.waitpid(start(), 0)[1] == 0
    assert before == [p.stat().st_mtime_ns for p in rows], "a finished shard was made again"
    output.rename(f"{output}-{name}")
    print(len(rows), flush=True)

if mode == "steps":
    assert os.waitpid(start(keep=True), 0)[1] == 0
    output.rename(f"{output}-undisturbed")
    for at in range(len(list(output.parent.glob(f"{output.name}.*")))):
        Path(f"{output}.{at}").rename(output)
        finish(at)
else:
    began = time.monotonic()
    finish("undisturbed")
    seconds, draw, notes = time.monotonic() - began, random.Random(0), output / ".prepare/notes"
    for i in range(4):  # somewhere in the first quarter of the shards, in the second ...
        for _ in range(1 + i % 2):  # some runs are killed twice
            child = start()
            while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) and len(list(notes.glob("*"))) < 2 * i:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, seconds / 4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        finish(i)
"""


def finished_before(zygote: Zygote, tmp_path: Path, source: Path, mode: str, options: dict) -> list[int]:
    """Kills and reruns in every way, checks the bytes, returns for each rerun how many shards it found finished."""
    whole = tmp_path / "whole"
    make(source, whole, **options)
    script = write(tmp_path / "kills.py", KILLS.encode())
    said = zygote.run(["python", script, source, tmp_path / "out", mode, json.dumps(options)])
    found = [int(line) for line in said.splitlines() if line.isdigit()]
    outputs = list(tmp_path.glob("out-*"))
    assert len(outputs) == len(found) + (mode == "steps")  # and the undisturbed one
    for output in outputs:
        assert tree(output) == tree(whole), output
    return found


def test_killed_at_every_commit_step_a_rerun_gives_the_undisturbed_bytes(zygote, tmp_path):
    source = class_folders(tmp_path / "source", "xy")
    write(source / "x/bad.mp4", b"")
    found = finished_before(zygote, tmp_path, source, "steps", {"clips_per_shard": 4})
    # before each rename: arguments, check, tar, rows, note, tar, rows, note, quarantine, report, index; and after the last
    assert found == [0] * 5 + [1] * 3 + [2] * 4


def test_an_index_killed_at_every_commit_step_is_continued(zygote, tmp_path):
    found = finished_before(zygote, tmp_path, foreign(tmp_path / "source"), "steps", {})
    assert found == [0] * 4 + [1] * 2 + [2] * 4


def test_killed_at_random_moments_a_rerun_gives_the_undisturbed_bytes(zygote, tmp_path):
    source = tmp_path / "videos"
    for i in range(16):
        write(source / f"{'xy'[i % 2]}/{i}.mp4", clip(i % 4, 40))
    found = finished_before(zygote, tmp_path, source, "random", {"clips_per_shard": 2})
    assert len(found) == 5 and len(set(found)) >= 3  # the kills fell on different moments


def test_a_killed_run_leaves_no_worker_and_another_run_finishes_its_work(zygote, tmp_path):
    source, output = tmp_path / "videos", tmp_path / "out"
    for i in range(40):
        write(source / f"{'xy'[i % 2]}/{i}.mp4", clip(i % 4, 40))
    run = zygote.start(["prepare", source, "--output", output, "--clips-per-shard", 4, "--set", "workers=2"])
    notes = output / ".prepare/notes"
    while not run.status.exists() and not notes.exists():
        time.sleep(0.005)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill(group=False)
    assert run.wait() == -signal.SIGKILL and len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=30)[1]
    done = {path: path.stat().st_mtime_ns for path in output.glob("*.rows.json")}
    prepare(source, output, clips_per_shard=4, workers=2)
    make(source, tmp_path / "whole", clips_per_shard=4)
    assert tree(output) == tree(tmp_path / "whole") and len(done) < 10
    assert sum(path.stat().st_mtime_ns != stamp for path, stamp in done.items()) <= 1  # the one not yet noted


def test_an_interrupt_at_any_moment_is_one_word(zygote, tmp_path):
    """Ctrl-C reaches the workers, too: also those that have just begun, and import."""
    source = class_folders(tmp_path / "videos", "x")
    run = zygote.start(["prepare", source, "--output", tmp_path / "out"])
    while not run.status.exists() and not any(
        re.search("forkserver|spawn_main", " ".join(child.cmdline())) for child in psutil.Process(run.pid).children()
    ):
        time.sleep(0.01)
    time.sleep(0.2)  # it imports still
    run.kill(signal.SIGINT)
    assert run.wait() == 130 and "Stopped." in run.said() and "Traceback" not in run.said()


def test_two_at_once_are_refused(tmp_path, monkeypatch):
    from stages.prepare.output import Output
    from stages.prepare.output_folder import locked_output

    source, output = class_folders(tmp_path / "videos", "x"), tmp_path / "out"
    make(source, tmp_path / "other")
    arguments = json.loads((tmp_path / "other/prepare.json").read_bytes())
    monkeypatch.setattr("stages.runtime.lock.TIMEOUT", 0.5)  # seconds
    with (
        locked_output(Output(output, output), arguments, among_tars=False),
        pytest.raises(ReskdError, match="in use by another process"),
    ):
        make(source, output)
    assert len(make(source, output).shards) == 1


def test_a_full_disk_is_told_and_a_rerun_continues(tmp_path):
    source, output = class_folders(tmp_path / "videos"), tmp_path / "out"
    make(source, tmp_path / "whole", clips_per_shard=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file can be larger, as if the disk were full
    try:
        with pytest.raises(ReskdError, match=r"can't be written .*Make room.*it continues"):
            make(source, output, clips_per_shard=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    make(source, output, clips_per_shard=4)
    assert tree(output) == tree(tmp_path / "whole")


def test_real_videos_of_many_codecs(clips, tmp_path):
    data = make(clips, tmp_path / "out", clips_per_shard=6, check="quick")
    assert list(quarantine(tmp_path / "out")) == ["corrupted.mp4"]
    rows = {row.key: row for entry in data.shards for _, row, _ in stream_shard(data, entry.name)}
    assert len(rows) == 14 and rows["av1_video"].decoder == "pyav-seek"
    assert (rows["video_90"].width, rows["video_90"].height) == (rows["video_0"].height, rows["video_0"].width)
