"""Annotations in each publisher's exact form, with real encoded videos, become data sets; nothing is lost in silence."""

import io
import json
import re
import tarfile
from functools import cache, partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.view import ViewPolicy
from pipeline import cli
from stages.prepare.annotation_files import mmaction_annotations
from stages.prepare.path_index import PathIndex, match_paths, same_ending
from stages.prepare.prepare import prepare
from stages.shards.classes import read_classes
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.stream_shard import stream_shard
from stages.stream.all_views import AllViews, ShardWork
from stages.stream.clips import ClipDataset
from stages.video.decode import decode_frames
from tests.media import encode_video, moving_square, numbered_frames, read_numbers

make = partial(prepare, workers=0)


@cache
def clip(seed: int) -> bytes:
    return encode_video(moving_square(8, 32, 32, seed))


@cache
def numbered(frames: int = 40) -> bytes:
    """At 8 frames a second."""
    return encode_video(numbered_frames(frames, 64, 64), gop=8)


def write(path: Path, data: bytes | str | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(data) if isinstance(data, (list, dict)) else data
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def videos(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        write(folder / name, clip(i))
    return folder


def rows(data: Dataset) -> dict[str, object]:
    return {row.key: row for entry in data.shards for row in data.rows(entry.name)}


def named(data: Dataset) -> dict[str, list[str]]:
    """key -> names of the labels."""
    return {key: [data.classes[label] for label in row.labels] for key, row in rows(data).items()}


def lines(folder: Path, name: str = "quarantine") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def kinds(folder: Path, name: str = "quarantine") -> dict[str, str]:
    return {line["path"]: line["kind"] for line in lines(folder, name)}


# Kinetics

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
air drumming,-0abcdefghi,1,11,train,0
abseiling,0abcdefghij,20,30,train,1
abseiling,_wholevideo,2,4,train,0
"playing ""air"" guitar",_wholevideo,3.5,4.25,train,0
abseiling,_wholevideo,4,60,train,0
abseiling,_wholevideo,9,19,train,0
abseiling,_wholevideo,4,3,train,0
abseiling,zzzzzzzzzzz,0,10,train,0
abseiling,0abcdefghij,20,30,train,1
"""


@pytest.fixture
def kinetics(tmp_path) -> dict:
    folder = videos(tmp_path / "videos", "air_drumming/-0abcdefghi_000001_000011.mp4", "0abcdefghij_000020_000030.mkv",
                    "extra/nobody.mp4")  # fmt: skip
    write(folder / "_wholevideo.mp4", numbered())
    return {"annotations": write(tmp_path / "kinetics_train.csv", KINETICS), "videos": folder}


def test_kinetics_clips_that_are_cut_and_parts_of_whole_videos(kinetics, tmp_path):
    data = make("kinetics", tmp_path / "out", **kinetics)
    assert data.classes == ("abseiling", "air drumming", 'playing "air" guitar')
    assert named(data) == {
        "air_drumming_-0abcdefghi_000001_000011": ["air drumming"],
        "0abcdefghij_000020_000030": ["abseiling"],
        "wholevideo_000002_000004": ["abseiling"],
        "wholevideo_3_5_4_25": ['playing "air" guitar'],
        "wholevideo_000004_000060": ["abseiling"],
    }
    parts = {key[11:]: (row.start, row.frames) for key, row in rows(data).items() if row.start}
    assert parts == {"000002_000004": (16, 16), "3_5_4_25": (28, 6), "000004_000060": (32, 8)}
    told = {(line["path"], line["kind"]): line["reason"] for line in lines(tmp_path / "out")}
    assert told.keys() == {("_wholevideo.mp4", "range"), ("zzzzzzzzzzz_000000_000010", "absent"),
                           ("extra/nobody.mp4", "unlisted"), ("0abcdefghij_000020_000030.mkv", "twice")}  # fmt: skip
    assert "line 9" in told["zzzzzzzzzzz_000000_000010", "absent"]
    assert told["extra/nobody.mp4", "unlisted"] == "not listed in kinetics_train.csv"
    ranges = sorted(line["reason"] for line in lines(tmp_path / "out") if line["kind"] == "range")
    assert "from 4 to 3 s" in ranges[0] and "the part from 9 to 19 s begins after the end of the video" in ranges[1]
    (cut,) = lines(tmp_path / "out", "report")
    assert cut["kind"] == "range" and "from 4 to 60 s ends with its video, at 5.00 s" in cut["reason"]


def test_views_of_a_part_show_the_frames_of_that_part(kinetics, tmp_path):
    data = make("kinetics", tmp_path / "out", **kinetics)
    policy = ViewPolicy(num_frames=4, jitter=False, crop="full", flip=0)
    name, index = data.shards[0].name, {row.key: r for r, row in enumerate(data.rows(data.shards[0].name))}
    (batch,) = AllViews(data, [ShardWork(name, range(1))], policy, 64, len(index))
    students = ClipDataset(data, size=64, num_classes=3, policy=policy)
    for key, numbers in {
        "wholevideo_000002_000004": [18, 22, 26, 30],
        "wholevideo_3_5_4_25": [28, 30, 31, 33],
        "wholevideo_000004_000060": [33, 35, 37, 39],
    }.items():
        r = index[key]
        shown = batch.clips[0, r].permute(0, 2, 3, 1).numpy()
        assert read_numbers(shown) == numbers == (data.rows(name)[r].start + batch.frames[r, 0]).tolist()
        assert (students[(0, r, 0)].clips[0] == batch.clips[0, r]).all()


def test_the_time_of_a_part_is_kept_beside_the_video(kinetics, tmp_path):
    data = make("kinetics", tmp_path / "out", **kinetics)
    (name,) = [entry.name for entry in data.shards]
    found = list(stream_shard(data, name))
    assert sum(video == numbered() for _, _, video in found) == 3  # the bytes of the video, each time
    with tarfile.open(data.path / name) as tar:
        beside = json.loads(tar.extractfile("wholevideo_3_5_4_25.json").read())
    assert beside["segment"] == [3.5, 4.25] and beside["source"] == "_wholevideo.mp4" and beside["duration"] == 0.75


def test_parts_stay_parts_when_their_tars_are_indexed_anew(kinetics, tmp_path):
    data = make("kinetics", tmp_path / "out", **kinetics)
    (tmp_path / "tars").mkdir()
    (data.path / data.shards[0].name).rename(tmp_path / "tars/0.tar")
    again = make(tmp_path / "tars", tmp_path / "index")
    assert rows(again) == rows(data) and again.classes == data.classes
    told = [(line["path"], line["kind"], line["key"]) for line in lines(tmp_path / "index", "report")]
    assert told == [("0.tar/wholevideo_000004_000060.mp4", "range", "wholevideo_000004_000060")]


def test_a_part_beyond_the_end_of_its_video_in_a_tar_is_a_range_not_a_broken_file(kinetics, tmp_path):
    data = make("kinetics", tmp_path / "out", **kinetics)
    with tarfile.open(data.path / data.shards[0].name) as old:
        members = {member.name: old.extractfile(member).read() for member in old}
    beside = json.loads(members["wholevideo_3_5_4_25.json"]) | {"segment": [9.0, 10.0]}
    members["wholevideo_3_5_4_25.json"] = json.dumps(beside).encode()
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as new:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    make(tmp_path / "tars", tmp_path / "index")
    assert kinds(tmp_path / "index") == {"0.tar/wholevideo_3_5_4_25.mp4": "range"}


def test_kinetics_test_files_are_unlabelled_and_other_headers_are_known(tmp_path):
    folder = videos(tmp_path / "videos", "aaaaaaaaaaa_000001_000011.mp4")
    csv = write(tmp_path / "a.csv", "youtube_id,time_start,time_end,split\naaaaaaaaaaa,1,11,test\n")
    assert named(make("kinetics", tmp_path / "a", annotations=csv, videos=folder)) == {"aaaaaaaaaaa_000001_000011": []}
    csv = write(tmp_path / "b.csv", "video-id,start-time,end-time,label-name\r\naaaaaaaaaaa,1.0,11.0,sky diving\r\n")
    data = make("kinetics", tmp_path / "b", annotations=csv, videos=folder, classes=["base jumping", "sky diving"])
    assert rows(data)["aaaaaaaaaaa_000001_000011"].labels == (1,)


def test_a_file_of_several_splits_is_never_mixed(tmp_path):
    folder = videos(tmp_path / "v", "aaaaaaaaaaa_000001_000011.mp4", "bbbbbbbbbbb_000001_000011.mp4")
    csv = write(tmp_path / "k.csv", "label,youtube_id,time_start,time_end,split\nx,aaaaaaaaaaa,1,11,train\n"
                                    "x,bbbbbbbbbbb,1,11,validate\n")  # fmt: skip
    with pytest.raises(ReskdError, match="holds the splits train, validate. Choose one with --split"):
        make("kinetics", tmp_path / "out", annotations=csv, videos=folder)
    data = make("kinetics", tmp_path / "out", annotations=csv, videos=folder, split="val")
    assert list(rows(data)) == ["bbbbbbbbbbb_000001_000011"]
    assert lines(tmp_path / "out")[0]["reason"] == "not listed in k.csv as val"


def test_kinetics_files_of_other_hands(tmp_path):
    folder = videos(tmp_path / "v", "aaaaaaaaaaa_000001_000011.MP4")
    head = "\ufefflabel,youtube_id,time_start,time_end,split\r\n"
    csv = write(tmp_path / "k.csv", head + '"riding, mule",aaaaaaaaaaa,1,11,train\r\n\r\n  \r\n')
    data = make("kinetics", tmp_path / "out", annotations=csv, videos=folder)
    assert data.classes == ("riding, mule",) and not kinds(tmp_path / "out")
    for text, split, message in (
        (head + "x,aaaaaaaaaaa,1,11,train\n", "val", "no clip in it of the split val; it names train"),
        (head.replace(",split", "") + "x,aaaaaaaaaaa,1,11\n", "val", "it names none, leave --split out"),
        (head + f'"{"x" * 140_000},aaaaaaaaaaa,1,11,train\n', None, "not a readable CSV"),
        (head.encode("utf-16"), None, "Give a file of text in UTF-8"),
    ):
        with pytest.raises(ReskdError, match=message):
            make("kinetics", tmp_path / "no", annotations=write(tmp_path / "b.csv", text), videos=folder, split=split)


# Something-Something v2

STHV2 = [
    {"id": "78687", "label": "holding potato next to vicks vaporub bottle", "template": "Holding [something] next to "
     "[something]", "placeholders": ["potato", "vicks vaporub bottle"]},
    {"id": "42326", "label": "closing box", "template": "Closing [something]", "placeholders": ["box"]},
    {"id": "1", "label": "closing a door", "template": "Closing [something]", "placeholders": ["a door"]},
]  # fmt: skip
LABELS = {"Turning something": "1", "Closing something": "2", "Holding something next to something": "0"}


def test_something_something_by_templates(tmp_path):
    folder = tmp_path / "20bn-something-something-v2"
    webm = encode_video(moving_square(8, 32, 32), container="webm", codec="libvpx-vp9")
    write(folder / "78687.webm", webm), write(folder / "42326.webm", clip(1)), write(folder / "7.webm", clip(2))
    given = {"annotations": write(tmp_path / "something-something-v2-train.json", STHV2), "videos": folder}
    data = make("sthv2", tmp_path / "sorted", **given)
    assert data.classes == ("Closing something", "Holding something next to something")
    assert named(data) == {"42326": ["Closing something"], "78687": ["Holding something next to something"]}
    assert kinds(tmp_path / "sorted") == {"1": "absent", "7.webm": "unlisted"}
    labels = write(tmp_path / "something-something-v2-labels.json", LABELS)
    data = make("sthv2", tmp_path / "numbered", **given, classes=labels)
    assert data.classes == ("Holding something next to something", "Turning something", "Closing something")
    assert {key: row.labels for key, row in rows(data).items()} == {"42326": (2,), "78687": (0,)}
    test = write(tmp_path / "something-something-v2-test.json", [{"id": "7"}])
    assert named(make("sthv2", tmp_path / "test", annotations=test, videos=folder, classes=labels)) == {"7": []}


def test_a_numbered_list_of_classes_has_no_gaps(tmp_path):
    given = {"annotations": write(tmp_path / "t.json", STHV2), "videos": videos(tmp_path / "v", "1.webm")}
    for labels, message in (
        ({"a": "0", "b": "2"}, "'b' has the number 2, the next number is 1"),
        ({"Closing something": 0}, "'Holding something next to something' is none of the 1 classes"),
        ({"a": [1]}, "begins like JSON, but isn't an object"),
    ):
        with pytest.raises(ReskdError, match=message):
            make("sthv2", tmp_path / "out", **given, classes=write(tmp_path / "labels.json", labels))
    assert not (tmp_path / "out").exists()


# ActivityNet and FCVID

ACTNET = {"version": "VERSION 1.3", "taxonomy": [], "database": {
    "sJFgo9H6zNo": {"duration": 5.0, "subset": "training", "resolution": "64x64", "url": "", "annotations": [
        {"segment": [0.1, 1.2], "label": "Surfing"}, {"segment": [2.0, 3.1], "label": "Archery"},
        {"segment": [3.0, 4.1], "label": "Surfing"}]},
    "-lzUGXmSQiM": {"duration": 5.0, "subset": "training", "resolution": "64x64", "url": "", "annotations": [
        {"segment": [0.1, 1.2], "label": "Archery"}]},
    "V1zhqaGFY2A": {"duration": 5.0, "subset": "validation", "resolution": "64x64", "url": "", "annotations": [
        {"segment": [0.1, 1.2], "label": "Tango"}]},
    "ehGHCYKzyZ8": {"duration": 5.0, "subset": "testing", "resolution": "64x64", "url": "", "annotations": []}}}  # fmt: skip


def test_activitynet_videos_are_whole_and_have_all_their_labels(tmp_path):
    folder = videos(
        tmp_path / "v", "v_sJFgo9H6zNo.mp4", "more/-lzUGXmSQiM.mkv", "v_V1zhqaGFY2A.mp4", "v_ehGHCYKzyZ8.mp4"
    )
    given = {"annotations": write(tmp_path / "activity_net.v1-3.min.json", ACTNET), "videos": folder}
    classes = ["Tango", "Surfing", "Archery"]
    data = make("actnet", tmp_path / "train", **given, split="train", classes=classes)
    assert data.classes == tuple(classes)
    assert named(data) == {"v_sJFgo9H6zNo": ["Surfing", "Archery"], "more_-lzUGXmSQiM": ["Archery"]}
    assert all((row.start, row.frames) == (0, 8) for row in rows(data).values())
    assert set(kinds(tmp_path / "train").values()) == {"unlisted"}
    assert named(make("actnet", tmp_path / "val", **given, split="val", classes=classes)) == {
        "v_V1zhqaGFY2A": ["Tango"]
    }
    assert named(make("actnet", tmp_path / "test", **given, split="test", classes=classes)) == {"v_ehGHCYKzyZ8": []}
    with pytest.raises(ReskdError, match="Choose with --split train, val or test"):
        make("actnet", tmp_path / "none", **given)


def test_json_of_other_types_is_refused_by_its_entry(tmp_path):
    folder = videos(tmp_path / "v", "a.mp4")
    database = {"database": {"a": {"subset": "training", "annotations": [{"label": None}]}}}
    for name, content, options in (
        ("sthv2", [{"id": "a", "template": 3}], {}),
        ("actnet", database, {"split": "train"}),
    ):
        with pytest.raises(ReskdError, match="was expected, as in annotations of"):
            make(name, tmp_path / "o", annotations=write(tmp_path / "a.json", content), videos=folder, **options)


@pytest.mark.parametrize(
    "text",
    ['["b", "a"]', "0 b\n1 a\n", "2,a\r\n1,b\r\n", "id,name\n0,b\n1,a\n", '1\t"b"\n2\t"a"\n', '{"a": "1", "b": 0}'],
)
def test_class_orders_in_the_forms_that_are_about(tmp_path, text):
    assert read_classes(write(tmp_path / "classes", text)) == ("b", "a")


@pytest.mark.parametrize("lines", [["0", "1", "2"], ["9 ball"], ["1 x", "3 y"], ["1 x", "1 y"], ["[a] b", "c"]])
def test_class_names_that_hold_numbers_or_brackets_stay(tmp_path, lines):
    assert read_classes(write(tmp_path / "classes", "\n".join(lines))) == tuple(lines)


def test_commas_separate_where_a_name_ends_in_a_number(tmp_path):
    folder = videos(tmp_path / "v", "p 10.mp4", "q 7.mp4")
    file = write(tmp_path / "f.txt", "p 10,250,1\nq 7 , 3 , 0\n")
    data = make("fcvid", tmp_path / "out", annotations=file, videos=folder)
    assert named(data) == {"p_10": ["1"], "q_7": ["0"]}


@pytest.mark.parametrize("name", ["actnet", "fcvid"])
def test_lists_of_several_labels_and_a_frame_count(tmp_path, name):
    folder = videos(tmp_path / "v", "v_a.mp4", "v_b, the second.mp4", "v_c.mp4")
    file = write(tmp_path / "train_split.txt", "v_a,812,3\nv_b, the second,44,7,0,7\nv_d,30,1\n")
    classes = write(tmp_path / "classInd.txt", "".join(f"class {i}\n" for i in range(239)))
    data = make(name, tmp_path / "out", annotations=file, videos=folder, classes=classes)
    assert len(data.classes) == 239
    assert named(data) == {"v_a": ["class 3"], "v_b_the_second": ["class 7", "class 0"]}
    assert kinds(tmp_path / "out") == {"v_d": "absent", "v_c.mp4": "unlisted"}
    with pytest.raises(ReskdError, match="lists one split|--split goes with kinetics or actnet, not with fcvid"):
        make(name, tmp_path / "other", annotations=file, videos=folder, split="train")


# Mini-Kinetics and mmaction2


@pytest.mark.parametrize("form", ["{} {} {}", "{},{},{}"], ids=["blank", "comma"])
@pytest.mark.parametrize("flat", [False, True], ids=["class folders", "flat"])
def test_mini_kinetics_lists_with_blanks_in_their_paths(tmp_path, form, flat):
    names = ["clean and jerk/aaaaaaaaaaa_000001_000011", "bobsledding/bbbbbbbbbbb_000002_000012"]
    folder = videos(tmp_path / "v", *(f"{name.rpartition('/')[2] if flat else name}.mp4" for name in names))
    lines = [form.format(name, 300, label) for name, label in zip(names, (31, 4), strict=True)]
    file = write(tmp_path / "mini_train_videofolder.txt", "\n".join(lines) + "\n\n")
    data = make("minik", tmp_path / "out", annotations=file, videos=folder)
    assert data.classes == tuple(map(str, range(32)))
    assert sorted(row.labels for row in rows(data).values()) == [(4,), (31,)] and lines_are_none(tmp_path / "out")


def lines_are_none(folder: Path) -> bool:
    return lines(folder) == lines(folder, "report") == []


def test_mmaction_lists_and_json(tmp_path):
    folder = videos(tmp_path / "v", "x/v0.mp4", "y/v0.mp4", "a b.mp4")
    text = write(tmp_path / "list.txt", "x/v0.mp4 0\ny/v0.mp4 1 3\na b.mp4 2\n")
    form = [{"filename": "x/v0.mp4", "label": 0}, {"filename": "y/v0.mp4", "label": [1, 3]},
            {"filename": "a b.mp4", "label": [2]}]  # fmt: skip
    for i, file in enumerate((text, write(tmp_path / "list.json", form))):
        data = make("mmaction", tmp_path / f"out{i}", annotations=file, videos=folder)
        assert {key: row.labels for key, row in rows(data).items()} == {"x_v0": (0,), "y_v0": (1, 3), "a_b": (2,)}


# No blank before an integer at the end: by the format, that is a label.
words = st.text("abcXYZ09-_.() ", min_size=1).map(str.strip).filter(lambda w: w and not re.search(r"\s-?\d+$", w))
numbers = st.lists(st.integers(0, 400), min_size=1, max_size=4, unique=True)


@given(st.lists(st.tuples(words, numbers), min_size=1, max_size=5), st.sampled_from([" ", "\t", ",", ", "]))
def test_any_path_and_its_labels_come_out_of_a_line(tmp_path_factory, entries, between):
    file = tmp_path_factory.getbasetemp() / "line.txt"
    file.write_text("".join(between.join([path, *map(str, labels)]) + "\n" for path, labels in entries))
    assert [(e.paths[0], list(map(int, e.labels))) for e in mmaction_annotations(file)] == entries


# Names and files


def test_names_are_found_where_they_are_listed_before_anywhere_else(tmp_path):
    index = PathIndex(tmp_path, ["x/v0.mp4", "y/v0.mp4", "v_1.webm", "deep/er/only.mkv", "a.b.mp4"])
    entries = [("x/v0",), ("y/v0.avi",), ("z/v0",), ("v_1", "1"), ("only.mp4",), (f"{tmp_path}/a.b.mp4",), ("./a.b",)]
    assert match_paths(index, entries) == [
        ("x/v0.mp4",),
        ("y/v0.mp4",),
        (),
        ("v_1.webm",),
        ("deep/er/only.mkv",),
        ("a.b.mp4",),
        ("a.b.mp4",),
    ]
    assert match_paths(index, [("v0",)]) == [("x/v0.mp4", "y/v0.mp4")]
    assert match_paths(PathIndex(tmp_path, ["c.mp4", "c.mkv"]), [("c",)]) == [("c.mkv", "c.mp4")]


def test_a_video_of_another_folder_is_taken_by_its_name_and_told(tmp_path, capsys):
    folder = videos(tmp_path / "v", "train/a/1.mp4", "val/a/2.mp4", "b/3.mp4", "deep/c_d/4.mp4", "5.mp4")
    listed = "train/a/1 0\ntrain/a/2.mp4 1\n/of/another/b/3.mp4 0\nc d/4 0\ne/5 1\nb/x/../3 1\n"
    file = write(tmp_path / "list.txt", listed)
    data = make("mmaction", tmp_path / "out", annotations=file, videos=folder)
    assert set(rows(data)) == {"train_a_1", "val_a_2", "b_3", "deep_c_d_4", "5"}
    (told,) = lines(tmp_path / "out", "report")
    assert (told["path"], told["kind"]) == ("val/a/2.mp4", "elsewhere")
    assert "taken for train/a/2.mp4, which doesn't exist" in told["reason"] and "line 2" in told["reason"]
    assert "1 elsewhere" in capsys.readouterr().err
    for one, other, same in (("a/1", "x/a/1.mp4", True), ("y/a/1.avi", "a/1.mp4", True), ("b/1", "a/1.mp4", False)):
        assert same_ending(one, other) is same


def test_an_entry_that_several_files_fit_is_quarantined(tmp_path):
    folder = videos(tmp_path / "v", "whole/a.mp4", "replaced/a.mp4", "b.mp4")
    data = make("mmaction", tmp_path / "out", annotations=write(tmp_path / "list.txt", "a 0\nb 1\n"), videos=folder)
    assert list(rows(data)) == ["b"] and kinds(tmp_path / "out") == {"a": "ambiguous"}
    assert "may be replaced/a.mp4 or whole/a.mp4 (" in lines(tmp_path / "out")[0]["reason"]


BAD_FILES = {
    "kinetics without a header": ("kinetics", "x,aaaaaaaaaaa,1,11,train\n",
                                  r"line 1: 'x,aaaaaaaaaaa,1,11,train' where `label,youtube_id,time_start"),
    "kinetics without a time": ("kinetics", "label,youtube_id,time_start,time_end\nx,aaaaaaaaaaa,,11\n", "line 2: "),
    "nothing": ("kinetics", "", "'nothing' where"),
    "kinetics as minik": ("minik", KINETICS, r"line 1: 'label,youtube_id,time_start,time_end,split,is_cc' where "
                                             r"`\{path\} \{num_frames\} \{label\}` was expected"),
    "no label": ("mmaction", "a.mp4 0\nb.mp4\n", r"line 2: 'b.mp4' where `\{file\} \{label\}"),
    "no frame count": ("fcvid", "v_a,3\n", "line 1: 'v_a,3' where"),
    "a list as sthv2": ("sthv2", "1.webm 0\n", r"where `\[\{\"id\""),
    "an object as sthv2": ("sthv2", '{"a": 1}', r"where `\[\{\"id\""),
    "no id": ("sthv2", '[{"template": "x"}]', "entry 0: .* where"),
    "a name as a label": ("mmaction", '[{"filename": "a.mp4", "label": ["x"]}]', "entry 0: 'x' is no label"),
    "another object": ("actnet", '{"v_test1": {}}', "'v_test1' where `.\"database\""),
    "no subset": ("actnet", '{"database": {"a": {"annotations": []}}}', "a: .* where `.\"database\""),
    "not text": ("mmaction", b"\xff\xfe\x00", "can't be read"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, message", BAD_FILES.values(), ids=BAD_FILES)
def test_another_format_is_refused_saying_what_was_found_and_expected(tmp_path, name, content, message):
    file, split = write(tmp_path / "file", content), "train" if name == "actnet" else None
    with pytest.raises(ReskdError, match=message):
        make(name, tmp_path / "out", annotations=file, videos=videos(tmp_path / "v", "a.mp4"), split=split)
    assert not (tmp_path / "out").exists()


def test_options_go_with_their_formats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, folder = write(tmp_path / "f.txt", "a.mp4 0\n"), videos(tmp_path / "v", "a.mp4")
    given = {"annotations": file, "videos": folder}
    for source, options, message in (
        ("mmaction", {"annotations": file}, "mmaction: --videos is missing"),
        ("mmaction", {}, "mmaction: --annotations is missing"),
        ("mmaction", {"annotations": tmp_path / "no", "videos": folder}, "no: no such file"),
        ("mmaction", {"annotations": file, "videos": tmp_path / "no"}, "no: no such folder"),
        ("mmaction", given | {"fps": 5.0}, "--fps goes with rawframes, not with mmaction"),
        ("rawframes", given | {"split": "val"}, "--split goes with kinetics or actnet, not with rawframes"),
        (folder, {"videos": folder}, "--videos goes with kinetics or minik"),
        ("nowhere", {}, "nowhere: no such folder.*or one of kinetics"),
        ("mmaction", {"annotations": folder, "videos": folder}, "v: no such file"),
        ("mmactoin", given, "mmactoin: no such folder. Did you mean 'mmaction'"),
    ):
        with pytest.raises(ReskdError, match=message):
            make(source, tmp_path / "out", **options)


def test_a_name_is_a_format_where_annotations_are_given_and_a_folder_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    videos(Path("mmaction"), "x/a.mp4", "y/b.mp4")
    assert make("mmaction", tmp_path / "folders").classes == ("x", "y")
    file = write(tmp_path / "f.txt", "x/a.mp4 3\n")
    assert len(make("mmaction", tmp_path / "list", annotations=file, videos=Path("mmaction")).classes) == 4
    assert "mmaction: taken for the format of the annotations" in capsys.readouterr().err


def test_names_as_windows_and_macos_write_them(tmp_path):
    folder = videos(tmp_path / "v", "a b/x.mp4", "c/caf\u00e9.mp4")
    file = write(tmp_path / "f.txt", "a b\\x.mp4 0\r\nc\\cafe\u0301.mp4 1\r\n")
    data = make("mmaction", tmp_path / "out", annotations=file, videos=folder)
    assert sorted(row.labels for row in rows(data).values()) == [(0,), (1,)] and not kinds(tmp_path / "out")


def test_a_wrong_folder_of_videos_is_told_before_any_work(tmp_path):
    folder = videos(tmp_path / "v", "other.mp4")
    file = write(tmp_path / "f.txt", f"x.mp4 0\n{write(tmp_path / 'elsewhere.mp4', clip(1))} 1\n")
    with pytest.raises(ReskdError, match=r"none of its 2 clips can be taken from .*v. The first, x.mp4: no such file.*"
                                         r"holds 1 that aren't listed, such as other.mp4"):  # fmt: skip
        make("mmaction", tmp_path / "out", annotations=file, videos=folder)
    assert not (tmp_path / "out").exists()
    videos(folder, "x.mp4")
    make("mmaction", tmp_path / "out", annotations=file, videos=folder)
    told = {line["path"]: line["reason"] for line in lines(tmp_path / "out")}
    assert "it lies outside the folder of the videos" in told[str(tmp_path / "elsewhere.mp4")]
    videos(folder, "y.mp4"), write(file, file.read_text() + "y.mp4 0\n")
    with pytest.raises(ReskdError, match="listing: the clips, their sizes or their labels differ"):
        make("mmaction", tmp_path / "out", annotations=file, videos=folder)


def test_clips_of_several_labels_are_counted(tmp_path, capsys):
    """A list of another NAME, whose frame counts are taken for labels, is seen by them."""
    given = {"videos": videos(tmp_path / "v", "a.mp4", "b.mp4")}
    given["annotations"] = write(tmp_path / "f.txt", "a.mp4 30 1\nb.mp4 2\n")
    make("mmaction", tmp_path / "out", **given, dry_run=True)
    assert "2 clips (2 labelled, 1 with several labels) of 31 classes" in capsys.readouterr().err
    make("mmaction", tmp_path / "out", **given)
    assert "1 clips have several labels." in capsys.readouterr().err


# Limits, dry runs, overlaps, duplicates


def test_a_limit_takes_the_first_clips_of_the_order_of_the_shards(tmp_path):
    folder = videos(tmp_path / "v", *(f"{i}.mp4" for i in range(9)))
    file = write(tmp_path / "f.txt", "".join(f"{i}.mp4 {i % 2}\n" for i in range(12)))
    some, more, all_of_it = (
        [row.key for entry in data.shards for row in data.rows(entry.name)]
        for data in (
            make("mmaction", tmp_path / str(limit), annotations=file, videos=folder, limit=limit, clips_per_shard=4)
            for limit in (3, 6, None)
        )
    )
    assert len(some) == 3 and len(more) == 6 and more[:3] == some and all_of_it[:6] == more and len(all_of_it) == 9
    assert list(kinds(tmp_path / "3").values()) == ["absent"] * 3  # and the other six are no quarantine
    with pytest.raises(ReskdError, match="limit: the data set has 3, this run wants 4"):
        make("mmaction", tmp_path / "3", annotations=file, videos=folder, limit=4, clips_per_shard=4)


def test_a_dry_run_tells_and_writes_nothing(kinetics, tmp_path):
    given = ["--annotations", kinetics["annotations"], "--videos", kinetics["videos"], "--output", tmp_path / "out"]
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(cli, ["prepare", "kinetics", "--dry-run", *map(str, given), "--clips-per-shard", "2"])
    assert done.exit_code == 0, done.output
    size = sum(len(data) for data in (clip(0), clip(1), *[numbered()] * 4)) / 1e9
    assert f"6 clips (6 labelled) of 3 classes, {size:.3f} GB more, in 3 shards" in done.output
    assert "Not in the data set: 1 absent, 1 range, 1 twice, 1 unlisted." in done.output
    assert sorted(tmp_path.rglob("*")) == before
    done = CliRunner().invoke(cli, ["prepare", "kinetics", *map(str, given), "--limit", "2", "--set", "workers=0"])
    assert done.exit_code == 0 and open_dataset(tmp_path / "out").shards[0].clips == 2
    assert (
        CliRunner().invoke(cli, ["prepare", "kinetics", "--dry-run", *map(str, given), "--limit", "2"]).exit_code == 0
    )


def test_videos_in_two_splits_are_reported_and_stay(tmp_path):
    for name in ("train", "val", "test"):
        for i in range(3):
            write(tmp_path / name / f"class{i % 2}" / f"{name}{i}.mp4", clip(30 + i + 10 * len(name)))
    (tmp_path / "val/class0/copy.mp4").write_bytes((tmp_path / "train/class0/train0.mp4").read_bytes())
    (tmp_path / "val/class1/other.mp4").write_bytes((tmp_path / "train/class0/train2.mp4").read_bytes())
    make(tmp_path / "train", tmp_path / "a", clips_per_shard=2)
    data = make(tmp_path / "val", tmp_path / "b", classes=tmp_path / "a")
    found = {line["key"]: line for line in lines(tmp_path / "b", "report")}
    assert found.keys() == {"class0_copy", "class1_other"} <= rows(data).keys()
    assert all(line["kind"] == "overlap" and line["with"] == str(tmp_path / "a") for line in found.values())
    assert found["class0_copy"]["same_labels"] and found["class0_copy"]["same_as"]["key"] == "class0_train0"
    assert "with other labels: this clip has ['class1'], the other has ['class0']" in found["class1_other"]["reason"]
    make(tmp_path / "val", tmp_path / "b", classes=tmp_path / "a", disjoint_from=[tmp_path / "a"])  # told once
    assert len(lines(tmp_path / "b", "report")) == 2
    make(tmp_path / "test", tmp_path / "c", disjoint_from=[tmp_path / "a"])
    assert lines(tmp_path / "c", "report") == []
    make(tmp_path / "test", tmp_path / "c", disjoint_from=[tmp_path / "b", tmp_path / "c"])  # finished; asked again
    assert lines(tmp_path / "c", "report") == []
    with pytest.raises(ReskdError, match="no data set in this folder"):
        make(tmp_path / "test", tmp_path / "d", disjoint_from=[tmp_path / "nowhere"])


def test_the_same_video_twice_is_reported_with_a_word_where_its_labels_differ(kinetics, tmp_path):
    folder = kinetics["videos"]
    write(folder / "ccccccccccc_000001_000011.mp4", clip(0)), write(folder / "ddddddddddd_000001_000011.mp4", clip(0))
    csv = kinetics["annotations"]
    csv.write_text(KINETICS + "air drumming,ccccccccccc,1,11,train,0\nabseiling,ddddddddddd,1,11,train,0\n")
    make("kinetics", tmp_path / "out", **kinetics, clips_per_shard=2)
    found = [line for line in lines(tmp_path / "out", "report") if line["kind"] == "duplicate"]
    assert len(found) == 2  # three of one content; parts of one video are not the same
    assert [line["same_labels"] for line in found].count(False) in (1, 2)
    assert all(("other labels" in line["reason"]) != line["same_labels"] for line in found)


def test_classes_do_not_depend_on_which_videos_are_there(kinetics, tmp_path):
    csv = kinetics["annotations"]
    csv.write_text(KINETICS + "aaa,yyyyyyyyyyy,0,10,train,0\naab,_wholevideo,3,2,train,0\n")
    assert make("kinetics", tmp_path / "out", **kinetics).classes[:3] == ("aaa", "aab", "abseiling")


def test_decoded_pictures_are_those_of_the_listed_file(tmp_path):
    """No other video takes the place of one that is absent, though it has its name."""
    folder = tmp_path / "v"
    write(folder / "y/v0.mp4", clip(5)), write(folder / "z/v0.mp4", clip(6))
    file = write(tmp_path / "f.txt", "x/v0.mp4 0\ny/v0.mp4 1\nz/v0.mp4 2\n")
    data = make("mmaction", tmp_path / "out", annotations=file, videos=folder)
    assert kinds(tmp_path / "out") == {"x/v0.mp4": "absent"}
    for _, row, video in stream_shard(data, data.shards[0].name):
        frames, _ = decode_frames(video, [0], row.decoder)
        expected, _ = decode_frames(clip(4 + row.labels[0]), [0], row.decoder)
        assert (frames == expected).all()
