"""Names of folders, classes and files in any bytes: every command; one name in two Unicode forms; emojis."""

import csv
import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.group import load_manifest
from stages.config.file import load_config
from stages.config.options import as_yaml, with_options
from stages.evaluate.config import EvaluateConfig
from stages.prepare.prepare import prepare
from stages.runtime.log import RunLog, read_metrics
from stages.shards.classes import forms_of_one_class, read_classes
from stages.shards.dataset import open_dataset
from stages.student.config import TrainConfig
from tests.media import encode_video, moving_square
from tests.runs import MODEL, POLICY, command, sets

LATIN = os.fsdecode(b"caf\xe9")  # Latin-1: no UTF-8
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def videos(folder: Path, classes: list[str], clips: int = 4) -> Path:
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(clips):
            (folder / name / f"{LATIN}{i}.mp4").write_bytes(encode_video(moving_square(6, 32, 48, 10 * c + i)))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in Latin-1 with videos in class folders, one of which is Latin-1 too."""
    home = tmp_path_factory.mktemp("names") / LATIN
    try:
        home.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    videos(home / "videos", [LATIN, "thé"])
    return home


def test_every_command_in_folders_that_are_not_utf8(home):
    train = [part for change in MODEL for part in ("--set", change)] + sets({"loader.workers": 0, "schedule.epochs": 1,
        "batch_size": 4, "log_every": 1, "optim.lr": 0.005})  # fmt: skip
    said = command("prepare", home / "videos", "--output", home / "made", "--set", "workers=0")
    assert r"caf\udce9/made: 8 clips" in said
    (home / "tars" / LATIN).mkdir(parents=True)
    shutil.copy(home / "made/000000.tar", home / "tars" / LATIN)
    data, cache, pack = home / "data", home / "t.zarr", home / "pack"
    command("prepare", home / "tars", "--output", data, "--class-order", home / "made", "--set", "workers=0")
    opened = open_dataset(data)
    assert opened.classes == (LATIN, "thé") and opened.shards[0].name == f"{LATIN}/000000.tar"
    command("train-student", *train, "--set", f"output={home}/teacher", *sets({"data.train": str(data), "data.val": str(data),
        "size": 32, "policy": POLICY}))  # fmt: skip
    assert list(home.glob("teacher/tensorboard/events*"))
    weights = home / "teacher/last.safetensors"
    assert read_classes(weights) == opened.classes
    command("cache-teacher", "--set", f"output={cache}", "--set", f"data={data}", "--set", f"teacher.checkpoint={weights}",
        *sets({"policy": POLICY, "views": 2, "loader.workers": 0}))  # fmt: skip
    assert load_manifest(cache).identity.classes == opened.classes
    key = opened.rows(opened.shards[0].name)[0].key
    said = command("inspect-cache", cache, "--data", data, "--clip", key, "--png", home / "clip.png", "--json",
        home / "cache.json")  # fmt: skip
    assert r"caf\udce9/t.zarr" in said and (home / "clip.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((home / "cache.json").read_text())["clip"]["shard"] == opened.shards[0].name
    command("verify-cache", cache)
    command("pack", "--set", f"data={data}", "--set", f"output={pack}", *sets({"frames": "all", "loader.workers": 0}))
    command("train-student", *train, *sets({"output": str(home / "student"), "data.train": str(data), "data.cache": str(cache),
        "data.val": str(data), "size": 16}))  # fmt: skip
    score = home / "score.json"
    for source in ([], ["--pack", pack]):
        said = command("evaluate", home / "student/last.safetensors", "--data", data, "--output", score, *source,
            "--set", "loader.workers=0")  # fmt: skip
        assert "not made" not in said and r"caf\udce9" in said
        result = json.loads(score.read_text())
        assert result["clips"] == 8 and os.fsencode(result["data"]) == os.fsencode(data)  # the JSON has the bytes
        with open(home / "score.classes.csv", encoding="utf-8", newline="") as file:
            assert [row[0] for row in csv.reader(file)] == ["class", r"caf\udce9", "thé"]
        assert (home / "score.confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_stored_config_has_its_paths_back(home):
    from stages.config.file import save_config

    changes = [f"{key}={as_yaml(str(home / key))}" for key in ("checkpoint", "data", "output")]
    config = load_config(EvaluateConfig, None, changes)
    save_config(config, home / "config.yaml")
    assert load_config(EvaluateConfig, home / "config.yaml") == config and config.data == home / "data"


@given(value=st.text() | st.lists(st.text()) | st.binary().map(os.fsdecode))
def test_options_reach_the_config_whole(value):
    (line,) = with_options({"output": value}, [])
    assert yaml.safe_load(line.partition("=")[2]) == value


def test_an_emoji_in_a_path(tmp_path):
    folder = videos(tmp_path / "🎬", ["x"], clips=1)
    command("prepare", folder, "--output", tmp_path / "🎬 out", "--set", "workers=0")
    assert open_dataset(tmp_path / "🎬 out").classes == ("x",)


# One name in two Unicode forms


def test_two_forms_of_a_name_are_one_class_and_the_command_says_so(tmp_path):
    folder = videos(tmp_path / "videos", [NFC, NFD, "thé"], clips=1)
    said = command("prepare", folder, "--output", tmp_path / "data", "--set", "workers=0")
    data = open_dataset(tmp_path / "data")
    assert data.classes == (NFC, "thé")
    assert sorted(row.labels for row in data.rows(data.shards[0].name)) == [(0,), (0,), (1,)]
    assert f"two Unicode forms (NFC and NFD), which look the same, count as one class: {NFC}." in " ".join(said.split())
    assert "Unicode" in command("prepare", folder, "--output", tmp_path / "more", "--dry-run", "--set", "workers=0")
    tars = tmp_path / "tars"
    tars.mkdir()
    shutil.copy(tmp_path / "data/000000.tar", tars)  # `label_names` in its json have both forms
    assert "Unicode" in command("prepare", tars, "--output", tmp_path / "again", "--set", "workers=0")
    assert open_dataset(tmp_path / "again").classes == data.classes


def test_data_sets_of_two_machines_have_the_same_classes(tmp_path):
    found = [prepare(videos(tmp_path / form, [name, "x"], clips=1), tmp_path / f"{form}-data", workers=0).classes
             for form, name in (("linux", NFC), ("mac", NFD))]  # fmt: skip
    assert found[0] == found[1] == (NFC, "x")


@pytest.mark.parametrize("listed", [NFC, NFD])
def test_a_list_of_classes_in_the_other_form(tmp_path, listed):
    (tmp_path / "classes.txt").write_text(f"x\n{listed}\n")
    folder = videos(tmp_path / "videos", [NFC if listed == NFD else NFD, "x"], clips=1)
    data = prepare(folder, tmp_path / "data", classes=tmp_path / "classes.txt", workers=0)
    assert data.classes == ("x", NFC) and sorted(r.labels for r in data.rows(data.shards[0].name)) == [(0,), (1,)]
    with pytest.raises(ReskdError, match="listed twice"):
        read_classes([NFC, NFD])
    with pytest.raises(ReskdError, match="listed twice, in two Unicode forms"):
        prepare(folder, tmp_path / "other", classes=_older(tmp_path / "older", (NFC, NFD)), workers=0)


def _older(folder: Path, classes: tuple[str, ...]) -> Path:
    """The index of a data set in which an older version kept both forms."""
    from stages.shards.index import make_index, write_index

    folder.mkdir()
    write_index(folder, make_index(classes=classes, decoder="pyav 1", base=".", shards=[], quarantine={}, rules=2,
                                    check="quick"))  # fmt: skip
    return folder


@given(st.lists(st.text("aé\u0301\u00e9ñ한", min_size=1, max_size=3), unique=True))
def test_forms_are_found_as_by_hand(names):
    by_hand = {
        n
        for i, a in enumerate(names)
        for n in names[:i]
        if unicodedata.normalize("NFD", a) == unicodedata.normalize("NFD", n)
    }
    assert set(forms_of_one_class(names)) == {unicodedata.normalize("NFC", n) for n in by_hand}


# Results and their ornaments


def test_a_training_goes_on_without_tensorboard(tmp_path, capsys):
    (tmp_path / "tensorboard").write_bytes(b"a file in its way")
    log = RunLog(tmp_path, 0)
    log.row("train", 1, {"loss": 1.5})
    log.close()
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1, "loss": 1.5}]
    assert "no more TensorBoard logs" in capsys.readouterr().err


def test_a_sweep_reports_without_its_plot(tmp_path, capsys):
    from stages.sweep.report import write_report

    config = TrainConfig.model_validate({"output": tmp_path / "a", "data": {"train": tmp_path}, "size": 16,
        "model": {"arch": "tsm", "backbone": "resnet18", "num_frames": 4}})  # fmt: skip
    (tmp_path / "sweep.png").mkdir()
    row = {"score": 50.0, "headline": "top1", "gflops": 0.1, "clips_seen": 8}
    result = write_report({"a$_{[/red]": config}, {"a$_{[/red]": row}, {}, {}, tmp_path, None)
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    assert "sweep.png: not made (IsADirectoryError" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "sweep.png").rmdir()
    write_report({f"$_{LATIN}": config}, {f"$_{LATIN}": row}, {}, {}, tmp_path, None)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG") and "not made" not in capsys.readouterr().err
