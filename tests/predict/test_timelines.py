"""Timelines: steps, their segments, pictures of them."""

import tracemalloc

import numpy as np
import pytest
from matplotlib.figure import Figure

from cache.errors import ReskdError
from stages.predict import steps as timeline
from stages.predict.steps import Steps, segments_of, steps_of
from stages.remote.url_path import UrlPath
from stages.runtime.plots import plot_text
from tests.predict.runs import lines_of


def test_a_step_is_the_mean_of_the_windows_that_cover_it():
    scores = np.array([[1, 0], [0, 1], [0.5, 0.5], [0, 1]], np.float32)
    starts, ends = np.array([0, 1, 2, 2.5]), np.array([2, 3, 4, 4.5])
    steps = steps_of(scores, starts, ends, 1.0, lambda means: means.numpy())
    assert steps.borders.tolist() == [0, 1, 2, 3, 4, 4.5]
    assert steps.probabilities[:, 0].tolist() == [1, 0.5, 0.25, 0.25, 0]


def test_the_steps_of_many_windows_are_those_of_each_alone(monkeypatch):
    """They are computed in pieces: the memory is that of the float32 result, and little more."""
    scores, starts = np.random.default_rng(0).random((2000, 400), np.float32), np.arange(2000.0)
    monkeypatch.setattr(timeline, "AT_ONCE", 63)
    tracemalloc.start()
    steps = steps_of(scores, starts, starts + 2, 1.0, lambda means: means.numpy())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert steps.probabilities.dtype == np.float32 and most < 1.3 * scores.nbytes
    assert np.allclose(steps.probabilities[1:2000], (scores[:-1] + scores[1:]) / 2)


@pytest.mark.parametrize("duration", [1e-7, 1e-6, 0.3])
def test_a_video_that_is_shorter_than_a_step_is_one_step(duration):
    steps = steps_of(np.array([[1.0, 0]], np.float32), np.zeros(1), np.array([duration]), 1.0, lambda m: m.numpy())
    assert steps.borders.tolist() == [0, duration] and steps.probabilities.tolist() == [[1, 0]]
    assert [(s.start, s.end, s.label) for s in segments_of(steps, 0.5, 0)] == [(0, duration, 0)]


def test_segments_are_long_and_sure_enough():
    p = np.array([0.9, 0.8, 0.3, 0.6, 0.7, 0.6, 0.1])
    steps = Steps(np.arange(8.0), np.stack([p, 1 - p], 1).astype(np.float32))

    def found(*rule):
        return [(s.start, s.end, s.label) for s in segments_of(steps, *rule)]

    assert found(0.5, 0) == [(0, 2, 0), (2, 3, 1), (3, 6, 0), (6, 7, 1)]
    assert found(0.5, 2) == [(0, 2, 0), (3, 6, 0)]
    assert found(0.65, 0) == [(0, 2, 0), (2, 3, 1), (4, 5, 0), (6, 7, 1)]
    assert segments_of(steps, 0.5, 3)[0].probability == pytest.approx(np.mean([0.6, 0.7, 0.6]))
    assert found(0.99, 0) == []


@pytest.mark.parametrize(("hop", "store"), [(1.0, False), (0.5, True)])
def test_the_timeline_of_a_film(bright, tmp_path, request, hop, store):
    folder = UrlPath(request.getfixturevalue("s3").bucket) / "film" if store else tmp_path
    changes = ("window=1", f"hop={hop}", "timeline=true", f"plot={folder / 'plots'}", f"csv={folder / 'o.csv'}")
    (line,) = lines_of(bright.net, [bright.film], folder, *changes)
    assert [s["label"] for s in line["segments"]] == ["dark", "[b]right", "dark"]
    borders = [(s["start"], s["end"]) for s in line["segments"]]
    assert np.array(borders) == pytest.approx(np.array([(0, 10), (10, 16), (16, 20.25)]), abs=hop / 2)
    assert line["seconds"] == 20.25 and "label" not in line
    assert [p.read_bytes()[:4] for p in (folder / "plots").iterdir()] == [b"\x89PNG"]
    assert len((folder / "o.csv").read_text().splitlines()) == 4
    with pytest.raises(ReskdError, match=f"{folder}/out.jsonl is an input|two outputs have the same name"):
        lines_of(bright.net, [bright.film], folder, f"csv={folder / 'out.jsonl'}")


def test_one_label_is_the_mean_of_the_windows(bright, tmp_path):
    each = lines_of(bright.net, [bright.film], tmp_path, "window=2", "timeline=true", "threshold=0")[0]
    (line,) = lines_of(bright.net, [bright.film], tmp_path, "window=2")
    assert each["windows"] == line["windows"] == 11 and line["label"] == "dark"
    assert line["probability"] < max(s["probability"] for s in each["segments"])


def test_a_legend_shows_names_that_begin_with_a_line():
    axes = Figure().subplots()
    for name in ("_walk", "run", "__"):
        axes.plot([0, 1], label=plot_text(name))
    labels = [text.get_text() for text in axes.legend().get_texts()]
    assert [label.removeprefix("\u200b") for label in labels] == ["_walk", "run", "__"]
