"""Labels of whole videos: they are `evaluate`'s. Inputs of all kinds, outputs, broken videos."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache.errors import ReskdError
from pipeline import cli
from stages.config.file import load_config
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.metrics.scoring import score_videos
from stages.models.checkpoints import load_model
from stages.predict import decoding
from stages.predict.inputs import find_videos
from stages.predict.lines import open_output
from stages.runtime.distributed import Ranks
from stages.shards.dataset import open_dataset
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.loading import batches_in_order
from stages.stream.protocol import protocol_policy
from tests.media import encode_video
from tests.predict.runs import lines_of, read_lines, shades


def evaluated(net, data, average, protocol) -> tuple[np.ndarray, list[str]]:
    """The probabilities [N,K] with which `evaluate` measures, and the keys."""
    model, card = load_model(net)
    dataset, policy = open_dataset(data), protocol_policy(card.eval_policy, protocol)
    clips = ClipDataset(
        dataset, size=card.size, render_via=card.render_via, num_classes=len(card.classes), policy=policy
    )
    alone = Ranks(0, 1, torch.device("cpu"))
    batches = batches_in_order(clips, LoaderConfig(workers=0), 16, alone)
    scored = score_videos(model, batches, len(card.classes), alone, False, average=average)
    keys = [dataset.rows(dataset.shards[s].name)[r].key for s, r in scored.videos.tolist()]
    return scored.probabilities, keys


@pytest.mark.parametrize(
    ("average", "protocol", "short"), [("prob", "1x1", 1500), ("logit", "2x3", 1500), ("feature", "2x1", 0)]
)
def test_files_and_a_data_set_have_evaluates_answers(data, teacher, tmp_path, average, protocol, short, monkeypatch):
    """`short`: frames of a video that is decoded from its start, whatever its decoder."""
    monkeypatch.setattr(decoding, "SHORT", short)
    changes = (f"average={average}", f"protocol={protocol}")
    probabilities, keys = evaluated(teacher, data.val, average, protocol)
    best = dict(zip(keys, np.sort(probabilities)[:, :-6:-1], strict=True))
    rows = lines_of(teacher, [data.val], tmp_path, *changes)
    assert [row["key"] for row in rows] == keys
    files = lines_of(teacher, [data.videos / "val"], tmp_path, *changes)
    by_key = {line["video"].split("/val/")[1].removesuffix(".mp4").replace("/", "_"): line for line in files}
    for row in rows:
        of_file = by_key[row["key"]]
        assert [t["probability"] for t in row["top"]] == pytest.approx(best[row["key"]], rel=1e-5)
        assert [t["probability"] for t in of_file["top"]] == pytest.approx(best[row["key"]], rel=1e-5)
        assert of_file["label"] == row["label"] and of_file["video"].split("/")[-2] == row["labels"][0]
    assert {line["decoder"] for line in files} == {"pyav" if short else rows[0]["decoder"]}
    assert np.ptp([row["probability"] for row in rows]) > 1e-4  # the videos differ
    config = [f"checkpoint={teacher}", f"data={data.val}", "loader.workers=0", *changes]
    result = evaluate(load_config(EvaluateConfig, None, config))
    assert 100 * np.mean([row["label"] in row["labels"] for row in rows]) == pytest.approx(result["top1"])
    assert {row["views"] for row in rows} == {result["views"]} and len(files) == result["clips"]


def test_workers_and_batches_change_nothing(bright, tmp_path):
    inputs = [bright.film, bright.dark, bright.light]
    alone = lines_of(bright.net, inputs, tmp_path, "window=1", "hop=0.5")
    several = lines_of(bright.net, inputs, tmp_path, "window=1", "hop=0.5", "loader.workers=2", "batch_size=5")
    for a, b in zip(alone, several, strict=True):
        assert a.pop("probability") == pytest.approx(b.pop("probability"), abs=1e-6)
        assert [t["label"] for t in a.pop("top")] == [t["label"] for t in b.pop("top")]
        assert a == b


def test_inputs_of_all_kinds(bright, tmp_path, capfd):
    """A folder in a folder, a glob, standard input; names that are not UTF-8; what is no video is passed over."""
    odd = os.fsdecode(b"caf\xe9 [1].mp4")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.MP4", f"deep/{odd}"):
        (tmp_path / "in" / name).write_bytes(bright.dark.read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no video")
    (tmp_path / "in" / ".hidden.mp4").write_text("no video")
    listed = os.fsencode(f"{bright.light}\n{tmp_path / 'in' / 'deep' / odd}\r\n\n{tmp_path}/gone.mp4\n")
    command = ["predict", bright.net, tmp_path / "in", tmp_path / "in" / "deep" / odd, f"{bright.root}/l*t.mp4", "-",
               "--set", "loader.workers=0", "--csv", tmp_path / "o.csv"]  # fmt: skip
    done = CliRunner().invoke(cli, [str(a) for a in command], input=listed)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    here = [os.path.relpath(line["video"], tmp_path) for line in lines]
    film = os.path.relpath(bright.light, tmp_path)
    assert here == ["in/b.MP4", f"in/deep/{odd}", f"in/deep/{odd}", film, film, f"in/deep/{odd}", "gone.mp4"]
    assert [line.get("label") for line in lines] == ["dark"] * 3 + ["[b]right"] * 2 + ["dark", None]
    assert lines[-1]["error"] == "No such file or directory" and done.exit_code == 1
    assert "1 files passed over" in done.stderr and "1 of 7 videos could not be read" in done.stderr
    table = (tmp_path / "o.csv").read_text(encoding="utf-8")
    assert table.count(r"caf\udce9 [1].mp4") == 3
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["label"] for row in rows] == [line.get("label", "") for line in lines]
    assert rows[-1]["error"] == lines[-1]["error"]


def test_broken_videos_are_lines_and_the_others_are_predicted(bright, tmp_path, capfd):
    (tmp_path / "a.mp4").write_text("no video at all")
    (tmp_path / "b.mp4").write_bytes(bright.film.read_bytes()[:1500])
    (tmp_path / "c.mp4").write_bytes(b"")
    (tmp_path / "d.mp4").mkdir()
    os.mkfifo(tmp_path / "e.mp4")
    (tmp_path / "one.mp4").write_bytes(encode_video(shades(0.25, first=1), fps=4))
    inputs = [tmp_path / f"{name}.mp4" for name in ("a", "b", "c", "e", "one")] + [bright.dark]
    for changes in ((), ("window=1",)):
        with pytest.raises(ReskdError, match=r"4 of 6 videos could not be read: their lines in .*out.jsonl say why"):
            lines_of(bright.net, inputs, tmp_path, *changes)
        *broken, one, dark = read_lines(tmp_path / "out.jsonl")
        assert [list(line) for line in broken] == [["video", "error"]] * 4
        assert [line["error"] for line in broken[2:]] == ["empty file (0 bytes)", "it is not a regular file"]
        assert "15 bytes that do not open" in broken[0]["error"]
        assert (one["label"], one["windows"], one["frames"]) == ("[b]right", 1, 1) and dark["label"] == "dark"
    assert "failed" in capfd.readouterr().err


def test_clips_of_two_data_sets_have_names_of_their_own(data, tmp_path):
    """A clip that fails is known by its name. The views of both copies are the same."""
    (tmp_path / "copy").symlink_to(data.val)
    videos = find_videos([data.val, tmp_path / "copy"])
    assert len({video.name for video in videos}) == len(videos) == 80
    assert len({video.key for video in videos}) == 40
    assert {video.name.split("/")[-3] for video in videos} == {"val", "copy"}


def test_a_video_that_takes_too_long_costs_its_line(bright, tmp_path, capfd):
    changes = ("loader.workers=1", "loader.limits.seconds=0.00001")
    with pytest.raises(ReskdError, match="1 of 1 videos"):
        lines_of(bright.net, [bright.film], tmp_path, *changes)
    (line,) = read_lines(tmp_path / "out.jsonl")
    assert "takes more than" in line["error"]


def test_a_line_is_in_the_file_as_soon_as_it_is_known(tmp_path):
    with open_output(tmp_path / "o.jsonl", tmp_path / "o.csv") as write:
        write({"video": "a", "error": "x"})
        assert read_lines(tmp_path / "o.jsonl") == [{"video": "a", "error": "x"}]
        assert (tmp_path / "o.csv").read_text().splitlines()[1] == "a,,,,,,,x"


def test_any_name_can_be_written_into_a_table_and_read_back(tmp_path):
    odd = ["a\rb", "a\r\nb", 'say "a, b"', "=1+1", "tab\t", "\u2028", "\0", ""]
    lost = ["\udce9", "\ud800"]  # bytes that are not UTF-8; half a sign, as JSON may have it
    with open_output(tmp_path / "o.jsonl", tmp_path / "o.csv") as write:
        for name in odd + lost:
            write({"video": name, "labels": [name], "error": "x"})
    with open(tmp_path / "o.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [row["labels"] for row in rows] == [*odd, r"\udce9", r"\ud800"]
