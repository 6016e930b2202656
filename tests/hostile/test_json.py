"""JSON and annotations of hostile sizes and shapes: a message that names the file, no traceback, little memory."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.json_file import MAX_DEPTH, parse_json
from stages.shards.classes import read_classes
from stages.shards.dataset import open_dataset
from stages.shards.index import read_index
from stages.shards.labels import check_labels
from tests.hostile.attempts import accepted, little_memory, refused

DEEP = {"lists": "[" * 100_000 + "]" * 100_000, "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "101 levels": "[" * 101 + "]" * 101}  # fmt: skip
OTHER = {"a number": "1", "null": "null", "a list": "[]", "a text": '"x"', "NaN": "NaN", "infinity": "-Infinity",
         "many digits": "1" * 5000, "binary": "\x00\x01", "nothing": "", "cut": '{"format":2,'}  # fmt: skip
BAD = {**DEEP, **OTHER}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_depth_is_an_error_that_is_caught_as_any_other(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.booleans(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
@settings(max_examples=100)
def test_honest_json_is_what_json_makes_of_it(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json("[" * (MAX_DEPTH - 90) + json.dumps(1) + "]" * (MAX_DEPTH - 90)) is not None


def changed(prepared: Path, folder: Path, name: str, change) -> Path:
    """A copy of the data set, in which one JSON file is changed: replaced by a text, or by what `change` does to it."""
    shutil.copytree(prepared, folder)
    text = change
    if callable(change):
        values = json.loads((folder / name).read_bytes())
        values.pop(
            "sha256", None
        ) if name == "index.json" else None  # an attacker makes digests fit, or leaves them out
        change(values)
        text = json.dumps(values)
    (folder / name).write_text(text)
    if name.endswith("rows.json"):
        import hashlib

        index = json.loads((folder / "index.json").read_bytes())
        del index["sha256"]
        index["shards"][0]["rows_sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "index.json").write_text(json.dumps(index))
    return folder


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(values):
        for step in path:
            values = values[step]
        values[last] = value

    return change


INDEX = {
    "clips, huge": put("shards", 0, "clips", 10**15),
    "clips, negative": put("shards", 0, "clips", -1),
    "clips, a text": put("shards", 0, "clips", "3"),
    "clips, true": put("shards", 0, "clips", True),
    "clips, a fraction": put("shards", 0, "clips", 2.5),
    "bytes, huge": put("shards", 0, "bytes", 10**400),
    "a name, a list": put("shards", 0, "name", ["x"]),
    "classes, a text": put("classes", "abc"),
    "classes, numbers": put("classes", [1, 2]),
    "shards, an object": put("shards", {}),
    "shards, numbers": put("shards", [1]),
    "base, null": put("base", None),
    "quarantine, a list": put("quarantine", []),
    "quarantine, a word": put("quarantine", {"000000.tar": {"x": "why"}}),
    "quarantine, too far": put("quarantine", {"000000.tar": {"999999999": "why"}}),
    "quarantine, below": put("quarantine", {"000000.tar": {"-1": "why"}}),
    "quarantine, elsewhere": put("quarantine", {"gone.tar": {"0": "why"}}),
    "a digest": put("shards", 0, "rows_sha256", "../../x"),
    "format, a list": put("format", [2]),
}


@pytest.mark.parametrize("change", [*INDEX.values(), *BAD.values()], ids=[*INDEX, *BAD])
def test_a_hostile_index_is_refused_by_name(prepared, tmp_path, change):
    folder = changed(prepared, tmp_path / "data", "index.json", change)
    with little_memory(), pytest.raises(ReskdError, match=r"index\.json: "):
        open_dataset(folder)
    with pytest.raises(ReskdError, match=r"index\.json: "):
        read_classes(folder)


ROWS = {
    "an offset outside": put("offset", 0, 10**12),
    "an offset before": put("offset", 0, 0),
    "a negative offset": put("offset", 0, -512),
    "a huge size": put("size", 0, 10**18),
    "a negative size": put("size", 0, -1),
    "frames beyond int32": put("frames", 0, 2**40),
    "no frames": put("frames", 0, 0),
    "no height": put("height", 0, 0),
    "a start beyond int32": put("start", 0, 10**30),
    "labels, a text": put("labels", 0, "ab"),
    "labels, negative": put("labels", 0, [-1]),
    "labels, nested": put("labels", 0, [[1]]),
    "a short column": put("key", ["x"]),
    "a column, an object": put("key", {}),
    "a key, a number": put("key", 0, 7),
    "a digest": put("sha256", 0, "zz"),
    "no column": lambda rows: rows.pop("key"),
}


@pytest.mark.parametrize("change", [*ROWS.values(), *BAD.values()], ids=[*ROWS, *BAD])
def test_hostile_rows_are_refused_by_name(prepared, tmp_path, change):
    data = open_dataset(changed(prepared, tmp_path / "data", "000000.tar.rows.json", change))
    with little_memory(), pytest.raises(ReskdError, match=r"rows\.json: "):
        data.rows("000000.tar")


def test_labels_beyond_the_classes_are_refused(prepared, tmp_path):
    data = open_dataset(changed(prepared, tmp_path / "data", "000000.tar.rows.json", put("labels", 0, [2**31 - 1])))
    with pytest.raises(ReskdError, match="outside the 2 classes"):
        check_labels(data, single=True)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_hostile_prepare_json_is_refused(prepared, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/prepare.json").write_text(text)
    said = refused("prepare", prepared.parent / "videos", "--output", tmp_path / "out", "--set", "workers=0")
    assert "prepare.json" in said or "made from another source" in said


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_hostile_note_of_a_shard_is_as_no_note(prepared, tmp_path, text):
    """An unfinished data set of others: its shards are made again."""
    shutil.copytree(prepared, tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    (tmp_path / "out/.prepare/notes").mkdir(parents=True)
    (tmp_path / "out/.prepare/notes/000000.tar.json").write_text(text)
    accepted("prepare", prepared.parent / "videos", "--output", tmp_path / "out", "--set", "workers=0")
    assert (tmp_path / "out/index.json").read_bytes() == (prepared / "index.json").read_bytes()


CLASS_LISTS = {
    **{name: text for name, text in DEEP.items() if name != "101 levels"},
    "a fraction": '{"a": 0.5}', "true": '{"a": true}', "NaN": '{"a": NaN}', "infinity": '{"a": Infinity}',
    "a list": '{"a": [0]}', "digits": '{"a": ' + "1" * 5000 + "}", "numbers": '["a", 1]',
}  # fmt: skip


@pytest.mark.parametrize("text", CLASS_LISTS.values(), ids=CLASS_LISTS)
def test_a_hostile_class_list_is_refused(prepared, tmp_path, text):
    (tmp_path / "classes").write_text(text)
    said = refused(
        "prepare", prepared.parent / "videos", "--output", tmp_path / "out", "--class-order", tmp_path / "classes"
    )
    assert "classes" in said and not (tmp_path / "out").exists()


LISTS = {
    "mmaction": ['[{"filename": "x/../../../etc/passwd.mp4", "label": 0}]', '[{"filename": "a\\u0000b.mp4", "label": 0}]',
                 '[{"filename": "\\ud800.mp4", "label": 0}]', f'[{{"filename": "{"a" * 5000}.mp4", "label": 0}}]',
                 '[{"filename": 1, "label": 0}]', '[{"filename": "a.mp4", "label": NaN}]', '[{"filename": "a.mp4", "label": {}}]',
                 "a.mp4 " + "9" * 5000, "[" * 100_000],
    "actnet": ["{", '{"database": []}', '{"database": {"a": {"subset": "training", "annotations": 3}}}', "[]" * 3,
               '{"a":' * 5000],
    "sthv2": ['[{"id": "../../etc/passwd", "template": "x"}]', '[{"id": "a", "template": {"b": 1}}]', "[1]", '"x"', "{}"],
    "kinetics": ["label,youtube_id,time_start,time_end\nx,../../etc/passwd,0,10",
                 "label,youtube_id,time_start,time_end\nx,y,inf,nan",
                 "label,youtube_id,time_start,time_end\nx,y,0,1e999", 'label,"' + "x" * 200_000],
    "minik": ["a.mp4 99999999999999999999999999 1", "\x00 1 1", f"{'a/' * 3000}x.mp4 1 1"],
    "rawframes": ["x 999999999999999 1", '[{"frame_dir": "a", "total_frames": 1e400, "label": 1}]',
                  "../../etc 1 1", f"{'a' * 5000} 1 1"],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, text", [(n, t) for n, texts in LISTS.items() for t in texts], ids=lambda v: ascii(v)[:40]
)
def test_a_hostile_list_of_clips_is_refused_and_writes_nothing(prepared, tmp_path, name, text):
    (tmp_path / "list").write_text(text)
    (tmp_path / "videos/a").mkdir(parents=True)
    (tmp_path / "videos/a/img_00001.jpg").write_bytes(b"x")
    (tmp_path / "videos/other.mp4").write_bytes(b"x")
    split = ["--split", "train"] if name == "actnet" else []
    refused("prepare", name, "--annotations", tmp_path / "list", "--videos", tmp_path / "videos", "--output", tmp_path / "out",
            *split, "--set", "workers=0")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_list_that_claims_10_to_the_15_frames_of_a_folder_is_quarantined_at_once(tmp_path):
    from stages.prepare.frame_folders import list_frame_folders

    (tmp_path / "videos/x").mkdir(parents=True)
    for i in (1, 2, 4):
        (tmp_path / f"videos/x/img_{i:05}.jpg").write_bytes(b"x")
    (tmp_path / "list").write_text("x 999999999999999 1\n")
    with little_memory():
        clips = list_frame_folders(
            tmp_path / "list", tmp_path / "videos", tmp_path, template=None, fps=25, with_offset=False
        )
    (line,) = clips.quarantine
    assert line["reason"].startswith(
        "999999999999996 of 999999999999999 frames are missing, the first is img_00003.jpg"
    )


def test_a_file_without_an_end_is_refused(tmp_path):
    from cache import json_file

    big = tmp_path / "index.json"
    with open(big, "wb") as file:
        file.truncate(json_file.MAX_BYTES + 1)
    with pytest.raises(ReskdError, match="more than 256 MiB"):
        read_index(tmp_path)
