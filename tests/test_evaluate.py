"""Scores against scikit-learn and a loop by hand, by every protocol; a student needs no teacher."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from cache.errors import ReskdError
from cache.view import View, ViewPolicy, sample_view
from pipeline import cli
from stages.config.file import load_config
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.confusion_plot import label_axes, plot_confusion, room_for
from stages.evaluate.confusion_plot import place as place_axes
from stages.evaluate.evaluate import evaluate, most_confused, protocol_policy
from stages.metrics.accuracy import ScoredVideos, confusion, measure
from stages.metrics.scoring import score_videos
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, load_model, save_model
from stages.models.config import ModelConfig
from stages.models.video_model import model_stats
from stages.prepare.prepare import prepare
from stages.runtime.distributed import Ranks
from stages.shards.dataset import open_dataset
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.loading import batches_in_order
from stages.video.decode import decode_frames
from stages.video.render import render
from tests.media import encode_video, moving_square

CLASSES = ("[a] thing", "b", "c")
STILL = ViewPolicy(num_frames=4, jitter=False, crop="center", flip=0.0)


def config_of(checkpoint, data, *changes):
    fixed = [f"checkpoint={checkpoint}", f"data={data}", "loader.workers=0"]
    return load_config(EvaluateConfig, None, [*fixed, *changes])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    """Nine wide and tall videos of three classes in two shards, one of which rotted since; `several`: the same by a CSV
    that gives some two labels and some none; a net with weights that tell them apart."""
    root = tmp_path_factory.mktemp("small")
    lines = []
    for i in range(9):
        folder = root / "videos" / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (48, 80) if i % 2 else (80, 48)
        (folder / f"{i}.mp4").write_bytes(encode_video(moving_square(3 + 4 * i, *shape, seed=i)))
        lines.append(f"{folder / f'{i}.mp4'},{('', CLASSES[i % 3], ','.join(CLASSES[:2]))[i % 3]}\n")
    prepare(root / "videos", root / "data", clips_per_shard=5, workers=0)
    (root / "several.csv").write_text("".join(lines))
    prepare(root / "several.csv", root / "several", classes=root / "data", clips_per_shard=5, workers=0)
    dataset = open_dataset(root / "data")
    rotten = dataset.rows(dataset.shards[0].name)[2]
    with open(dataset.base / dataset.shards[0].name, "r+b") as tar:
        tar.seek(rotten.offset)
        tar.write(bytes(rotten.size))
    torch.manual_seed(0)
    args = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
    model = ModelConfig(arch="tsm", backbone="resnet18", args=args, num_frames=4, num_classes=3)
    net = build_model(model).eval()
    torch.nn.init.normal_(net.head.fc.weight, std=3)
    save_model(root / "net.safetensors", net, ModelCard(model, CLASSES, 24, 32, STILL))
    return SimpleNamespace(root=root, net=root / "net.safetensors", data=root / "data", several=root / "several")


def by_hand(dataset, net, views_of, size, render_via=None):
    """Logits [N,V,K] and labels of the videos that decode, one view at a time."""
    logits, labels = [], []
    for entry in dataset.shards:
        for r, row in enumerate(dataset.rows(entry.name)):
            try:
                decode_frames(dataset.read(entry.name, r), np.arange(1), row.decoder)
            except ReskdError:
                continue
            each = []
            for view in views_of(entry.name, row):
                pictures, _ = decode_frames(dataset.read(entry.name, r), view.frames, row.decoder)
                with torch.no_grad():
                    each.append(net(torch.from_numpy(render(pictures, view, size, render_via))[None]).logits[0].numpy())
            logits.append(each)
            labels.append(row.labels)
    return np.array(logits, np.float64), labels


def softmax(x):
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def test_scores_are_scikit_learns(data, teacher, tmp_path):
    config = config_of(teacher, data.val, f"output={tmp_path}/deep/score.json")
    result = evaluate(config)
    net, card = load_model(teacher)

    def one(shard, row):
        yield sample_view(card.eval_policy, shard=shard, key=row.key, index=0, num_frames=8, aspect=1.0)

    logits, labels = by_hand(open_dataset(data.val), net, one, 32)
    logits, labels = logits[:, 0], [label for (label,) in labels]
    assert result["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert result["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=range(40)))
    assert result["mean_class"] == pytest.approx(100 * balanced_accuracy_score(labels, logits.argmax(1)))
    has, truth = sorted(set(labels)), np.eye(40, dtype=int)[labels]
    assert result["map"] == pytest.approx(100 * average_precision_score(truth[:, has], softmax(logits)[:, has]))
    assert result["clips"] == 40 and (result["protocol"], result["views"], result["headline"]) == ("1x1", 1, "top1")
    assert json.loads((tmp_path / "deep" / "score.json").read_text()) == result
    assert (tmp_path / "deep" / "score.confusion.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "deep" / "score.classes.csv") as file:
        table = list(csv.DictReader(file))
    assert [line["class"] for line in table] == list(card.classes)
    each = {"labels": range(40), "average": None, "zero_division": np.nan}
    for name, function in (("recall", recall_score), ("precision", precision_score)):
        column = [float(line[name] or "nan") for line in table]
        assert column == pytest.approx(100 * function(labels, logits.argmax(1), **each), nan_ok=True)


# ---- protocols ----


def twice_three(shard, row):
    """2x3, written down: the segments' middles and their first frames; squares left, right, middle of the long side."""
    n, side = row.frames, min(row.width, row.height) / max(row.width, row.height)
    for frames in ([int((i + 0.5) * n / 4) for i in range(4)], [int(i * n / 4) for i in range(4)]):
        for place in (0, 1 - side, (1 - side) / 2):
            box = (0, place, 1, side) if row.width > row.height else (place, 0, side, 1)
            yield View(np.array(frames, np.int32), np.array(box, np.float32), False)


@pytest.mark.parametrize("batch_size", [16, 4])  # several videos a batch, and a video in two forwards
def test_two_clips_in_three_crops_are_a_loop_by_hand(small, batch_size):
    net, card = load_model(small.net)
    dataset, size = open_dataset(small.data), card.size
    logits, labels = by_hand(dataset, net, twice_three, size, card.render_via)
    assert logits.shape == (8, 6, 3) and np.abs(logits - logits[:, :1]).max() > 0.1
    policy = protocol_policy(STILL, "2x3")
    clips = ClipDataset(dataset, size=size, render_via=card.render_via, num_classes=3, policy=policy)
    alone = Ranks(0, 1, torch.device("cpu"))
    batches = batches_in_order(clips, LoaderConfig(workers=0), batch_size, alone)
    scored = score_videos(net, batches, 3, alone, False, forward=batch_size)
    assert scored.probabilities == pytest.approx(softmax(logits).mean(1), abs=1e-5)
    assert scored.failed == 1 and scored.truth.argmax(1).tolist() == [label for (label,) in labels]


def test_what_evaluate_says_of_a_protocol(small, tmp_path, capfd):
    net, card = load_model(small.net)
    logits, labels = by_hand(open_dataset(small.data), net, twice_three, card.size, card.render_via)
    labels = [label for (label,) in labels]
    changes = ["protocol=2x3", f"output={tmp_path}/s.json"]
    for average, scores in (("prob", softmax(logits).mean(1)), ("logit", logits.mean(1)), ("feature", logits.mean(1))):
        result = evaluate(config_of(small.net, small.data, f"average={average}", *changes))
        assert result["top1"] == pytest.approx(100 * np.mean(scores.argmax(1) == labels))
        truth = np.eye(3, dtype=int)[labels]
        assert result["map"] == pytest.approx(100 * average_precision_score(truth, softmax(scores)))
    assert (result["views"], result["clips"], result["failed"]) == (6, 8, 1)
    assert result["gmacs"] == model_stats(net, 24).gmacs and result["gflops"] == 6 * result["gmacs"]
    assert sum(pair["clips"] for pair in result["confused"]) == 8 - round(result["top1"] * 8 / 100)
    said = capfd.readouterr().err
    assert "[a] thing" in said and "failed" in said and "taken for" in said


@pytest.mark.parametrize("protocol", ["1x1", "1x3", "4x3", "10x1", "10x3"])
def test_any_protocol_runs(small, protocol):
    result = evaluate(config_of(small.net, small.data, f"protocol={protocol}", "size=16"))
    assert result["views"] == np.prod([int(n) for n in protocol.split("x")]) and result["clips"] == 8


def test_one_and_two_processes_write_the_same(small, tmp_path, zygote):
    """By the command line; the odd rank out has fewer videos, and nothing is padded."""
    command = ["evaluate", small.net, "--data", small.data, "--protocol", "2x3", "--average", "logit", "--size", "16",
               "--set", "loader.workers=0", "--set", "batch_size=7", "--output"]  # fmt: skip
    zygote.run([*command, tmp_path / "1.json"])
    zygote.run_ranks([*command, tmp_path / "2.json"], 2)
    for name in ("json", "classes.csv", "confusion.png"):
        assert (tmp_path / f"1.{name}").read_bytes() == (tmp_path / f"2.{name}").read_bytes()
    assert json.loads((tmp_path / "2.json").read_text())["clips"] == 8


# ---- several labels ----


def test_several_labels_have_map_and_no_confusion_matrix(small, tmp_path, capfd):
    (tmp_path / "s.confusion.png").write_bytes(b"of an earlier evaluation")
    result = evaluate(config_of(small.net, small.several, f"output={tmp_path}/s.json"))
    assert result["headline"] == "map" and result["confused"] is None
    assert (result["clips"], result["unlabelled"], result["failed"]) == (6, 3, 0)
    assert not (tmp_path / "s.confusion.png").exists() and (tmp_path / "s.classes.csv").exists()
    assert "several labels" in capfd.readouterr().err
    net, _ = load_model(small.net)

    def one(shard, row):
        yield sample_view(STILL, shard=shard, key=row.key, index=0, num_frames=row.frames, aspect=row.aspect)

    logits, labels = by_hand(open_dataset(small.several), net, one, 24, 32)
    truth = np.array([[k in row for k in range(3)] for row in labels])
    keep = truth.any(1)
    truth, scores = truth[keep], softmax(logits[keep, 0])
    wanted = [average_precision_score(truth[:, k], scores[:, k]) for k in range(3) if truth[:, k].any()]
    assert result["map"] == pytest.approx(100 * np.mean(wanted))
    assert result["top1"] == pytest.approx(100 * np.mean([truth[i, k] for i, k in enumerate(scores.argmax(1))]))


# ---- pictures ----


def test_the_most_confused_pairs():
    counts = np.array([[5, 0, 2], [0, 0, 0], [3, 1, 4]])
    pairs = most_confused(counts, ("a", "b", "c"))
    assert [(p["truth"], p["taken_for"], p["clips"]) for p in pairs] == [("c", "a", 3), ("a", "c", 2), ("c", "b", 1)]
    assert pairs[0]["percent"] == pytest.approx(100 * 3 / 8)


def test_of_one_class_all_are_taken_for_it():
    scored = ScoredVideos(np.zeros((3, 2), np.int64), np.ones((3, 1)), np.ones((3, 1), bool), 0, 0)
    assert confusion(scored).tolist() == [[3]] and measure(scored)["top1"] == 100


@pytest.mark.parametrize("classes", [1, 5, 61])
def test_confusion_matrices_of_few_and_many_classes(classes, tmp_path):
    counts = np.eye(classes, dtype=int) * 3
    counts[0] = 0  # a class without clips
    plot_confusion(tmp_path / "c.png", counts, ["$x$ [y]"] * classes)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "names", [list("abc"), list("0123456789"), ["run", "walk", "sit"], ["JUMPING JACK"] * 3, ["x" * 28] * 30]
)
def test_the_names_of_classes_lie_between_the_matrix_and_its_labels(names):
    figure, size = Figure(figsize=(9, 9)), 9
    axes = figure.add_subplot()
    place_axes(axes, room_for(names, size))
    axes.imshow(np.eye(len(names)))
    label_axes(axes, names, size)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    matrix, texts = axes.get_window_extent(renderer), [text.get_window_extent(renderer) for text in axes.texts]
    below, beside = texts[::2], texts[1::2]
    assert max(box.y1 for box in below) <= matrix.y0 and max(box.x1 for box in beside) <= matrix.x0
    assert axes.xaxis.label.get_window_extent(renderer).y1 <= min(box.y0 for box in below)
    assert axes.yaxis.label.get_window_extent(renderer).x1 <= min(box.x0 for box in beside)


# ---- what is refused ----


def test_refuses_other_classes(data, small):
    with pytest.raises(
        ReskdError, match=r"other classes than .* has \(3 in the checkpoint and .*prepare --class-order"
    ):
        evaluate(config_of(small.net, data.val))


def test_refuses_data_without_labels_before_any_work(small, tmp_path, capfd):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(encode_video(moving_square(4, 32, 32)))
    prepare(tmp_path, tmp_path / "out", classes=small.data, workers=0)
    capfd.readouterr()
    with pytest.raises(ReskdError, match="all clips of .*out are unlabelled. Give a labelled data set"):
        evaluate(config_of(small.net, tmp_path / "out"))
    assert "videos/s" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["protocol=2x2"], "protocol.*2x2"),
        (["protocol=100x3"], "protocol.*100x3"),
        (["policy={num_frames: 4, jitter: false, crop: three_crop, flip: 0}"], "protocol 1x1.*--protocol 1x3"),
        (["policy={num_frames: 4, jitter: false, crop: center, flip: 0, clips: 4}"], "protocol 1x1.*--protocol 4x1"),
        (["policy={num_frames: 4, crop: center, flip: 0}"], "deterministic"),
        (["policy={num_frames: 4, jitter: false, flip: 0}"], "deterministic.*crop: center"),
        (["output={root}"], "is a folder"),
    ],
)
def test_refuses_what_it_cannot_mean(small, changes, said):
    with pytest.raises(ReskdError, match=said):
        evaluate(config_of(small.net, small.data, *(change.replace("{root}", str(small.root)) for change in changes)))


def test_the_command_refuses_another_average(small):
    done = CliRunner().invoke(cli, ["evaluate", str(small.net), "--average", "median"])
    assert done.exit_code == 2 and "'prob', 'logit', 'feature'" in done.output


def test_a_score_is_not_lost_to_what_is_written_beside_it(small, tmp_path, capsys):
    for ornament in ("s.classes.csv", "s.confusion.png"):
        (tmp_path / ornament).mkdir()
        (tmp_path / ornament / "in the way").touch()
    result = evaluate(config_of(small.net, small.data, f"output={tmp_path / 's.json'}"))
    assert json.loads((tmp_path / "s.json").read_text()) == result
    said = " ".join(capsys.readouterr().err.split())
    assert "s.classes.csv: not made (" in said and "s.confusion.png: not made (" in said


def test_the_scores_are_seen_if_they_can_not_be_written(small, tmp_path, capsys):
    (tmp_path / ".s.json.partial").mkdir()  # in the way of what is written
    with pytest.raises(OSError, match=r"\.partial"):
        evaluate(config_of(small.net, small.data, f"output={tmp_path / 's.json'}"))
    said = capsys.readouterr().err
    assert "mean_class" in said and "best and worst classes" in said and not (tmp_path / "s.json").exists()
