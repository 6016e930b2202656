"""What the report makes of evaluations: their answers, seeds, runs, classes and clips."""

import os

import numpy as np

from stages.evaluate.answers_file import Answer, read_answers, write_answers
from stages.metrics.accuracy import ScoredVideos
from stages.remote.url_path import UrlPath
from stages.report import clip_frames
from stages.report.evaluations import read_evaluation, with_answers
from stages.report.report import write_report
from stages.report.runs import read_run
from stages.report.seed_groups import group_by_seed
from stages.report.seed_points import evaluated_points
from stages.shards.dataset import open_dataset
from tests.report.folders import make_answers, make_run, make_score, text_of


def test_answers_of_clips_with_several_labels(data, tmp_path):
    val = open_dataset(data.val)
    truth, probabilities = np.zeros((2, 40), bool), np.full((2, 40), 0.01)
    truth[0, [3, 4]] = truth[1, 5] = True
    probabilities[0, 4], probabilities[1, 0] = 0.7, 0.61
    scored = ScoredVideos(np.array([[0, 1], [0, 3]]), probabilities, truth, 0, 0)
    write_answers(tmp_path / "a.csv", scored, val)
    first, second = read_answers(tmp_path / "a.csv")
    assert (first.truth, first.answer) == (f"{val.classes[3]} | {val.classes[4]}", val.classes[4])
    assert (first.probability, first.right) == (0.7, True)
    assert (second.shard, second.key, second.right) == ("000000.tar", val.rows("000000.tar")[3].key, False)


def test_answers_of_another_evaluation_are_left_out(tmp_path):
    read = read_evaluation(make_score(tmp_path / "s.json", "x.safetensors"), "s")
    make_answers(tmp_path / "s.answers.csv", 2)
    assert len(with_answers([read])[0].answers) == 2
    make_answers(tmp_path / "s.answers.csv", 3)
    (evaluation,) = with_answers([read])
    assert not evaluation.answers and "is of another evaluation" in evaluation.faults[0]


def test_only_answers_that_are_read_are_counted(tmp_path):
    names = {"claims much": {"clips": 10**9}, "has none": {}, "too long": {"clips": 5}, "fits": {}}
    read = [read_evaluation(make_score(tmp_path / f"{n}.json", "x", 90 - i, **more), n)
            for i, (n, more) in enumerate(names.items())]  # fmt: skip
    make_answers(tmp_path / "too long.answers.csv", 5)
    read[3] = read_evaluation(make_score(tmp_path / "fits.json", "x", 50), "fits")
    make_answers(tmp_path / "fits.answers.csv", 2)
    done = with_answers(read, most=2)
    assert [len(evaluation.answers) for evaluation in done] == [0, 0, 0, 2]
    assert "it has 5 answers, and of the 2 that are read in all" in done[2].faults[0] and not done[3].faults


def test_only_runs_of_other_seeds_are_seeds(tmp_path):
    runs = [read_run(make_run(tmp_path / name, seed=seed), name) for seed, name in enumerate(("a-0", "a-1"))]
    scores = [("a-0", "last", 16, 50), ("a-1", "last", 16, 60), ("a-0", "last", 32, 70), ("a-1", "last", 32, 80),
              ("a-0", "best", 16, 90)]  # fmt: skip
    files = [make_score(tmp_path / run / f"{net}-{size}.json", tmp_path / run / f"{net}.safetensors", top1, size)
             for run, net, size, top1 in scores]  # fmt: skip
    files.append(make_score(tmp_path / "other.json", "gone/x.safetensors", 10))
    read = [read_evaluation(file, file.stem) for file in files]
    (points,) = evaluated_points(group_by_seed(runs), read).values()
    assert {point.name: point.scores.values for point in points} == {
        "a (2 seeds), last.safetensors, 16 px": (50, 60),
        "a (2 seeds), last.safetensors, 32 px": (70, 80),
        "best-16": (90,),
        "other": (10,),
    }
    again = read_evaluation(make_score(tmp_path / "again.json", tmp_path / "a-0" / "last.safetensors", 55), "again")
    (points,) = evaluated_points(group_by_seed(runs), [read[0], read[1], again]).values()
    assert [(point.name, point.scores.values) for point in points] == [
        ("last-16", (50,)), ("last-16", (60,)), ("again", (55,))
    ]  # fmt: skip


def test_a_run_with_several_evaluations_names_them(tmp_path):
    folder = make_run(tmp_path / "runs" / "one")
    make_score(folder / "best.json", folder / "best.safetensors", 61.25)
    write_report([tmp_path / "runs"], tmp_path / "r.html")
    line = text_of(tmp_path / "r.html").partition("Every run in a line")[2].partition("Accuracy")[0]
    assert "61.25" in line and "several evaluations" not in line
    make_score(folder / "other.json", folder / "last.safetensors", 62.5)
    write_report([tmp_path / "runs"], tmp_path / "r.html")
    line = text_of(tmp_path / "r.html").partition("Every run in a line")[2].partition("Accuracy")[0]
    assert "2: best, other" in line and "61.25" not in line and "62.50" not in line


def test_a_teachers_score_is_not_the_students_beside_it(tmp_path):
    of_teacher = make_score(tmp_path / "student" / "teacher.json", "away/teacher/best.safetensors")
    of_moved = make_score(tmp_path / "student" / "student.json", "away/student/best.safetensors")
    weights_gone = make_score(tmp_path / "student" / "s.json", tmp_path / "teacher" / "best.safetensors")
    (tmp_path / "teacher").mkdir()
    folders = [read_evaluation(file, "x").run_folder for file in (of_teacher, of_moved, weights_gone)]
    assert folders == [None, tmp_path / "student", tmp_path / "teacher"]
    url = UrlPath("s3://bucket/runs/student")
    of_url = make_score(tmp_path / "student" / "url.json", url / "best.safetensors")
    assert read_evaluation(of_url, "x").run_folder == tmp_path / "student"  # a copy of it
    assert read_evaluation(of_url, "x", runs={url, tmp_path / "student"}).run_folder == url


def test_a_matrix_of_too_many_classes_is_not_drawn(tmp_path):
    make_score(tmp_path / "s.json", "x", 100 / 3000, clips=3000)
    make_answers(tmp_path / "s.answers.csv", 3000, kind=lambda i: f"class {i}")
    assert not write_report([tmp_path / "s.json"], tmp_path / "r.html")["problems"]
    assert "No confusion matrix: 3,001 classes, and at most 2,000 are drawn." in text_of(tmp_path / "r.html")


def test_a_video_that_ends_the_decoder_costs_its_picture(data, monkeypatch):
    val = open_dataset(data.val)
    good, bad = (Answer("000000.tar", val.rows("000000.tar")[i].key, "x", "y", 0.5, False) for i in (0, 1))
    gone = Answer("000000.tar", "no such key", "x", "y", 0.5, False)
    video, real = val.read("000000.tar", 1), clip_frames.decode_frames
    monkeypatch.setattr(clip_frames, "decode_frames", lambda v, *a: os._exit(7) if bytes(v) == video else real(v, *a))
    shown = clip_frames.ClipFrames(3).pictures("c", data.val, [(bad, "bad"), (good, "good"), (gone, "gone")])
    assert [picture.source[:15] for picture in shown.pictures] == ["", "data:image/jpeg", ""]
    late = clip_frames.ClipFrames(2, seconds=0).pictures("c", data.val, [(good, "good"), (gone, "gone")])
    assert "time for pictures is used up" in late.note and "no such key" not in late.note
    assert "exit status 7" in shown.note and "no such key: " in shown.note
