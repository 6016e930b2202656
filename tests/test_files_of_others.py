"""Tars and CSVs as others write them: what is read, what is quarantined, and what is refused with what to do."""

import csv
import hashlib
import io
import itertools
import json
import tarfile
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.identity import ShardEntry, keys_digest
from stages.prepare.prepare import prepare
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import make_index, write_index, write_rows
from stages.shards.stream_shard import stream_shard
from stages.shards.tar_scan import VIDEO_EXTENSIONS, scan_tar
from tests.media import encode_video, moving_square

make = partial(prepare, workers=0)


@cache
def clip(seed: int) -> bytes:
    return encode_video(moving_square(4, 32, 48, seed))


def tar_of(path: Path, members: dict[str, bytes | None]) -> Path:
    """A tar of these members; None: a directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            tar.addfile(info, io.BytesIO(data or b""))
    return path


def labels(data: Dataset) -> dict[str, tuple[int, ...]]:
    return {row.key: row.labels for entry in data.shards for row in data.rows(entry.name)}


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return {line["path"]: (line["kind"], line["reason"]) for line in map(json.loads, lines)}


def read_both_ways(data: Dataset) -> dict[str, bytes]:
    """Key -> video, by offset and by WebDataset's reader, which must agree."""
    found = {}
    for entry in data.shards:
        for number, row, video in stream_shard(data, entry.name):
            assert video == data.read(entry.name, number) and hashlib.sha256(video).hexdigest() == row.sha256
            found[row.key] = video
    return found


# Tars


def as_others_write(folder: Path) -> dict[str, Path]:
    """The kinds of `cases/tars`, made small."""
    kinds = {
        "dotslashdir": {"./": None, "./a.mp4": clip(0), "./a.cls": b"0", "./sub": None, "./sub/b.mp4": clip(1),
                        "./sub/b.cls": b"1"},
        "infojson": {"a.mp4": clip(0), "a.info.json": b'{"label": 0}', "a.mp4.json": b"[]", "b.info.json": b"no json",
                     "b.mp4": clip(1)},
        "keyed": {"a.video.mp4": clip(0), "a.caption.txt": b"\xff", "a.cls": b"0", "b.Video.MP4": clip(1), "b.cls": b"1"},
        "v2dfail": {"a.mp4": clip(0), "a.json": b'{"status": "success"}', "b.json": b"not even json", "b.txt": b"cap",
                    "LICENSE": b"free", "c.mp4": clip(1), "c.json": b"{}"},
    }  # fmt: skip
    return {name: tar_of(folder / name / "0.tar", members).parent for name, members in kinds.items()}


def test_tars_of_others_are_read_and_what_has_no_video_is_quarantined(tmp_path, capsys):
    folders = as_others_write(tmp_path)
    found = {name: make(folder, folder / "index") for name, folder in folders.items()}
    assert labels(found["dotslashdir"]) == {"./a": (0,), "./sub/b": (1,)}
    assert labels(found["infojson"]) == {"a": (), "b": ()}  # a label stands in key.json, key.cls or key.txt alone
    assert labels(found["keyed"]) == {"a": (0,), "b": (1,)}
    assert labels(found["v2dfail"]) == {"a": (), "c": ()}
    for data in found.values():
        assert list(read_both_ways(data).values()) == [clip(0), clip(1)]
    said = capsys.readouterr().err
    assert quarantine(folders["v2dfail"] / "index") == {
        "0.tar/b.json": ("no video", "no video beside it, but b.txt"),
        "0.tar/LICENSE": ("no video", "no video beside it"),
    }
    assert "2 no video" in said and "2 clips in 1 shards" in said
    assert all(not quarantine(folders[name] / "index") for name in ("dotslashdir", "infojson", "keyed"))
    make(folders["v2dfail"], tmp_path / "planned", dry_run=True)
    said = capsys.readouterr().err
    assert "would have 2 clips" in said and "2 keys in the tars have no video" in said


def test_a_tar_without_a_video_is_refused_beside_good_ones(tmp_path):
    as_others_write(tmp_path)
    tar_of(tmp_path / "v2dfail/1.tar", {"z.json": b"{}"})
    with pytest.raises(ReskdError, match=r"1\.tar: empty shard, no clip in it, but files such as 'z\.json'"):
        make(tmp_path / "v2dfail", tmp_path / "out")


@pytest.mark.parametrize(
    "kind, clips, lines", [("dotslashdir", 1, 0), ("infojson", 2, 0), ("keyed", 2, 0), ("v2dfail", 1, 1)]
)
def test_the_tars_of_the_cases(kind, clips, lines, cases, tmp_path):
    data = make(cases / "tars" / kind, tmp_path / "out")
    assert len(read_both_ways(data)) == clips and len(quarantine(tmp_path / "out")) == lines


EXTENSIONS = ["mp4", "video.mp4", "a.b.WebM", "json", "cls", "txt", "info.json", "mp4.json", "caption.txt", "jpg"]
names = st.text("ab_-/ é", min_size=1, max_size=5).filter(lambda n: n[-1] != "/" and n[0] != "/" and "//" not in n)
groups = st.dictionaries(names, st.sets(st.sampled_from(EXTENSIONS), min_size=1), min_size=1, max_size=5)


@settings(max_examples=150)
@given(groups=groups, between=st.lists(st.sampled_from(["d/", "README", "x/NOTES", "e"]), unique=True, max_size=3))
def test_the_scan_and_webdatasets_reader_agree_on_every_tar(groups, between, tmp_path_factory):
    members = [(key, ext, f"{key}.{ext}") for key, exts in groups.items() for ext in sorted(exts)]
    content = {name: name.encode() for _, _, name in members} | {
        name: None if name[-1] == "/" else b"x" for name in between
    }
    folder = tmp_path_factory.mktemp("tars")
    tar_of(folder / "0.tar", content)
    videos = {
        key: [n for k, _, n in members if k == key and n.rsplit(".", 1)[1].lower() in ("mp4", "webm")] for key in groups
    }
    if any(len(found) > 1 for found in videos.values()) or not any(videos.values()):
        with pytest.raises(
            ReskdError,
            match="has [23] videos: .* and " if any(len(v) > 1 for v in videos.values()) else "no clip in it",
        ):
            scan_tar(folder / "0.tar")
        return
    scanned = scan_tar(folder / "0.tar")
    assert {s.key: s.video.name for s in scanned.samples} == {key: found[0] for key, found in videos.items() if found}
    assert all(set(s.labels) == groups[s.key] & {"json", "cls", "txt"} for s in scanned.samples)
    told = {name for names in scanned.without_video for name in names}
    assert told == {n for k, _, n in members if not videos[k]} | {name for name in between if name[-1] != "/"}
    data = indexed(folder, scanned.samples)
    assert read_both_ways(data) == {key: found[0].encode() for key, found in videos.items() if found}


def indexed(folder: Path, samples: list) -> Dataset:
    """A data set of 0.tar, whose videos nobody decodes."""
    rows = [
        {"key": s.key, "ext": s.ext, "sha256": hashlib.sha256(s.video.name.encode()).hexdigest(), "offset": s.video.offset,
         "size": s.video.size, "header": s.video.header, "frames": 1, "fps": 1.0, "width": 1, "height": 1, "duration": 1.0,
         "labels": [], "decoder": "pyav", "start": 0, "fallback": None, "error": None}
        for s in samples
    ]  # fmt: skip
    size = (folder / "0.tar").stat().st_size
    entry = ShardEntry("0.tar", len(rows), size, "0" * 64, keys_digest([row["key"] for row in rows]))
    shards = [(entry, write_rows(folder, "0.tar", rows))]
    write_index(folder, make_index(classes=[], decoder="pyav 1", base=".", shards=shards, quarantine={}, rules=2,
                                   check="quick"))  # fmt: skip
    return open_dataset(folder)


# CSV


def listing(folder: Path, *lines: str) -> Path:
    """A CSV beside a.mp4, b.mp4 and `c, d.mp4`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("a.mp4", 0), ("b.mp4", 1), ("c, d.mp4", 2)):
        (folder / name).write_bytes(clip(seed))
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


@pytest.mark.parametrize("lines, expected", [
    (["video_path,class_name", "a.mp4,x", "b.mp4,y"], {"a": (0,), "b": (1,)}),
    (["filename,class", "a.mp4,x", "b.mp4,y"], {"a": (0,), "b": (1,)}),
    (["Label,File Name", "y,a.mp4", "x,b.mp4"], {"a": (1,), "b": (0,)}),
    (["clip,label_1,label_2", "a.mp4,x,y", "b.mp4,y"], {"a": (0, 1), "b": (1,)}),
    (["path,label", "a.mp4,x,y", "b.mp4,"], {"a": (0, 1), "b": ()}),
    (["path", "a.mp4,x", '"c, d.mp4",y'], {"a": (0,), "c_d": (1,)}),
    (["a.mp4,x", "b.mp4,x"], {"a": (0,), "b": (0,)}),
])  # fmt: skip
def test_a_first_line_says_which_columns_are_meant_or_is_a_clip(tmp_path, lines, expected):
    data = make(listing(tmp_path, *lines), tmp_path / "out")
    assert labels(data) == expected and not quarantine(tmp_path / "out")
    assert set(data.classes) == {"x", "y"} if len(set(expected.values())) > 1 else {"x"}


@pytest.mark.parametrize("lines, message", [
    (["movie,action", "a.mp4,x"], "line 1: 'movie,action': there is no file 'movie'"),
    (["gone.mp4,x", "a.mp4,x"], "line 1: 'gone.mp4,x': there is no file"),
    (["path,label,split", "a.mp4,x,train"], "line 1: 'path,label,split': there is no file 'path'"),
    (["path,label,label_name", "a.mp4,0,x"], "names several columns of labels"),
    (["filename,path,label", "a,a.mp4,x"], "names several columns of paths"),
    (["a.mp4,x", "c, d.mp4,y"], "line 2: 'c,d.mp4,y': a comma without quotation marks"),
    (["c, d.mp4,y"], "line 1: 'c,d.mp4,y': a comma without quotation marks"),
    (["path,label", "gone, too.mp4,x"], "line 2: 'gone,too.mp4,x': a comma without quotation marks"),
    (["label,path", "run, fast,a.mp4"], "line 2: 'run,fast,a.mp4': a comma without quotation marks"),
    (["label,path", "x,a.mp4,y"], "line 2: 'x,a.mp4,y' has 3 cells, the first line 2"),
])  # fmt: skip
def test_lists_that_can_be_read_in_two_ways_are_refused(tmp_path, lines, message):
    with pytest.raises(ReskdError) as caught:
        make(listing(tmp_path, *lines), tmp_path / "out")
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_with_a_header_the_first_clip_may_be_absent(tmp_path):
    data = make(listing(tmp_path, "path,label", "gone.mp4,x", "a.mp4,y"), tmp_path / "out")
    assert labels(data) == {"a": (1,)} and quarantine(tmp_path / "out")["gone.mp4"][0] == "absent"


cells = st.text("abc ,\"'é", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=4, unique_by=lambda r: r[0]), swapped=st.booleans())
def test_what_a_csv_writer_quotes_comes_back(rows, swapped, tmp_path_factory):
    from stages.prepare.csv_list import list_csv

    folder = tmp_path_factory.mktemp("csv")
    with open(folder / "list.csv", "w", newline="") as file:
        lines = [("path", "label"), *((f"{name}.mp4", label) for name, label in rows)]
        csv.writer(file).writerows(line[::-1] if swapped else line for line in lines)
    for name, _ in rows:
        (folder / f"{name}.mp4").write_bytes(b"video")
    assert [(c.name, c.labels) for c in list_csv(folder / "list.csv", folder)] == sorted(
        (f"{n}.mp4", (la,)) for n, la in rows
    )


# 1.0 is 1


@pytest.mark.parametrize("lines, classes, expected", [
    (["a.mp4,1.0", "b.mp4,0.0"], None, {"a": (1,), "b": (0,)}),
    (["a.mp4,1.0,2", "b.mp4,1,1.0"], None, {"a": (1, 2), "b": (1,)}),
    (["a.mp4,1.0", "b.mp4,0"], ["walk", "run"], {"a": (1,), "b": (0,)}),
    (["a.mp4,1.0", "b.mp4,x"], None, {"a": (0,), "b": (1,)}),  # names
    (["a.mp4,1.5", "b.mp4,1.0"], None, {"a": (1,), "b": (0,)}),  # names
    (["a.mp4,1.0", "b.mp4,2.0"], ["2.0", "1.0"], {"a": (1,), "b": (0,)}),  # names
])  # fmt: skip
def test_whole_numbers_in_a_csv(tmp_path, lines, classes, expected):
    assert labels(make(listing(tmp_path, *lines), tmp_path / "out", classes=classes)) == expected


def test_whole_numbers_in_json_and_in_tars(tmp_path):
    listing(tmp_path / "videos", "")
    items = [{"filename": "a.mp4", "label": 1.0}, {"filename": "b.mp4", "label": [0.0, 2]}]
    (tmp_path / "list.json").write_text(json.dumps(items))
    read = partial(make, "mmaction", annotations=tmp_path / "list.json", videos=tmp_path / "videos")
    assert labels(read(tmp_path / "out")) == {"a": (1,), "b": (0, 2)}
    (tmp_path / "list.json").write_text(json.dumps([{"filename": "a.mp4", "label": 1.5}]))
    with pytest.raises(ReskdError, match=r"1\.5 is no label"):
        read(tmp_path / "other")
    ways = [b'{"label": 1.0}', b'{"label": "1.0"}', b'{"label": 1}']
    for number, (one, other) in enumerate(itertools.combinations(ways, 2)):
        folder = tmp_path / f"tars{number}"
        tar_of(folder / "0.tar", {"a.mp4": clip(0), "a.json": one, "b.mp4": clip(1), "b.json": other})
        data = make(folder, folder / "index")
        assert labels(data) == {"a": (1,), "b": (1,)} and data.classes == ("0", "1")


def test_every_container_may_follow_other_dots(tmp_path):
    for ext in sorted(VIDEO_EXTENSIONS):
        samples = scan_tar(tar_of(tmp_path / f"{ext}.tar", {f"a.v1.2.{ext}": b"x", f"a.{ext}.json": b"x"})).samples
        assert [(s.key, s.ext, s.labels) for s in samples] == [("a", f"v1.2.{ext}", {})]
