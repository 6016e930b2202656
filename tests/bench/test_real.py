"""The study on real video: its list, its choices, its budget, and a small run of it on real clips."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ReskdError
from stages.bench.real import budget
from stages.bench.real.arms import LABELS, UPPER, UPSTREAM, combined_arms, detail_arms, screening_arms, sized
from stages.bench.real.budget import Part, plan_parts
from stages.bench.real.clip_list import few_labels, hold_out, read_clips, splits_of
from stages.bench.real.config import RealConfig, check_same_study
from stages.bench.real.results import Results, claim_figures, print_tables
from stages.bench.real.runs import CHOICE, StudentRun
from stages.distill.config import LossConfig
from tests.runs import command

LINES = [f"{label}/{source}_{i}.mp4,{label},{source},{side}" for label in ("run", "walk") for source, side in (
    ("g1", "train"), ("g2", "train"), ("g3", "train"), ("g4", "train"), ("g5", "test")) for i in range(3)]  # fmt: skip


@pytest.fixture(autouse=True)
def briefly(monkeypatch, few_processes):
    """The budget times one step of one clip; a loader has one process."""
    monkeypatch.setattr(budget, "CLIPS", 1)
    monkeypatch.setattr(budget, "STEPS", 1)


@pytest.fixture
def listed(tmp_path):
    """A function that writes a list of empty files; it returns the list and the folder."""

    def write(lines, header="path,label,source,split1"):
        for line in lines:
            file = tmp_path / line.split(",")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (tmp_path / "clips.csv").write_text("\n".join([header, *lines]) + "\n")
        return tmp_path / "clips.csv", tmp_path

    return write


def test_sources_held_out_for_choices_are_on_no_other_side(listed):
    clips = read_clips(*listed(LINES), None)
    fitted, held = hold_out(clips, "split1")
    assert len(fitted) + len(held) == 24 and splits_of(clips) == ["split1"]
    assert {c.label for c in fitted} == {c.label for c in held} == {"run", "walk"}
    sources = [{c.source for c in part} for part in (fitted, held, [c for c in clips if c.sides["split1"] == "test"])]
    assert not sources[0] & sources[1] and not (sources[0] | sources[1]) & sources[2]
    assert hold_out(clips, "split1") == (fitted, held)


def test_a_tenth_of_the_labels_has_every_class(listed):
    clips = read_clips(*listed(LINES), None)
    chosen = few_labels(clips)
    assert {c.label for c in clips if c.path in chosen} == {"run", "walk"} and len(chosen) == 4  # of 15 a class


@pytest.mark.parametrize("change, message", [
    (lambda lines: [*lines, "run/a.mp4,run,g5,train"], "source 'g5' is on both sides of split1"),
    (lambda lines: [*lines, "run/b.mp4,run,g9,both"], "'run/b.mp4': split1 'both' is neither train nor test"),
])  # fmt: skip
def test_a_wrong_list_is_refused_by_name(listed, change, message):
    with pytest.raises(ReskdError, match=message):
        read_clips(*listed(change(LINES)), None)


def test_a_list_without_its_columns_or_its_videos_is_refused_by_name(listed, tmp_path):
    file, folder = listed(LINES)
    (folder / "run/g1_0.mp4").unlink()
    with pytest.raises(ReskdError, match=r"run/g1_0.mp4 doesn't exist"):
        read_clips(file, folder, None)
    for header, name in (("path,label,group,split1", "source"), ("path,label,source,side", "split1"), ("a", "path")):
        with pytest.raises(ReskdError, match=f"no column {name}"):
            read_clips(*listed(LINES, header), None)
    with pytest.raises(ReskdError, match="can't be read as a CSV"):
        read_clips(tmp_path / "nothing.csv", folder, None)


def config_of(tmp_path, **changes) -> RealConfig:
    return RealConfig(videos=tmp_path, clips=tmp_path / "clips.csv", output=tmp_path / "real", **changes)


def run_of(arm, side=CHOICE, seed=0, rate=0.004, epochs=5):
    return StudentRun(arm, side, seed, rate, epochs)


def outcome(*top1):
    return {"top1": top1[-1], "curve": [[i + 1, value] for i, value in enumerate(top1)], "seconds": 1.0}


def test_choices_are_made_on_held_out_sources_alone(tmp_path):
    results = Results(config_of(tmp_path, lengths=(5, 10)))
    other = screening_arms(False)[4]
    results.add([run_of(LABELS), run_of(LABELS, rate=0.008), run_of(LABELS, epochs=10)],
                [outcome(10, 40, 41), outcome(10, 44, 42), outcome(10, 41, 42.5)])  # fmt: skip
    assert results.length_one() == 5 and results.rates(5) == {LABELS.name: 0.008}
    results.add([run_of(UPSTREAM), run_of(other), run_of(other, "split1", 0)], [outcome(46), outcome(45), outcome(90)])
    assert results.best_arm(5) == UPSTREAM


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6))
def test_differences_are_paired_by_split_and_seed(pairs):
    results = Results(RealConfig(videos=".", clips="c.csv", output="o"))
    for i, (ours, theirs) in enumerate(pairs):
        side, seed = f"split{i % 3}", i // 3
        results.add([run_of(UPSTREAM, side, seed), run_of(LABELS, side, seed)], [outcome(ours), outcome(theirs)])
    results.add([run_of(LABELS, "split9")], [outcome(77)])  # which the other arm doesn't have
    mean, error, number = results.difference(UPSTREAM, LABELS, 5)
    differences = [a - b for a, b in pairs]
    assert number == len(pairs) and mean == pytest.approx(np.mean(differences), abs=1e-9)
    expected = np.sqrt(np.var(differences, ddof=1) / len(pairs)) if len(pairs) > 1 else 0
    assert error == pytest.approx(expected, abs=1e-9)


def test_goals_are_met_by_figures_and_by_nothing_else(tmp_path, capfd):
    results = Results(config_of(tmp_path))
    for split, gain in (("split1", 5), ("split2", 6)):
        small = [run_of(arm, split) for arm in (LABELS, UPSTREAM, UPPER)]
        results.add(small, [outcome(20, 30), outcome(32, 30 + gain), outcome(30, 38)])
        results.add([run_of(sized(arm, 112), split) for arm in (LABELS, UPSTREAM)], [outcome(34), outcome(37)])
    figures = {figure.name: figure for figure in claim_figures(results, 5, UPSTREAM)}
    gain = figures["length 1: upstream: feature_mse - labels"]
    assert gain.ok and gain.value == 5.5 and gain.spread == pytest.approx(0.5)
    share = figures["80 px: share of that gap that is closed"]
    assert share.ok is None and share.value == pytest.approx(5.5 / 8)
    share = figures["112 px: share of that gap that is closed"]
    assert share.ok and share.value == pytest.approx(3 / 4)
    print_tables(results, 5, UPSTREAM)
    assert "+3.0 ± 0.0" in capfd.readouterr().err  # at 112 px, minus labels at 112 px
    one = Results(config_of(tmp_path))
    one.add([run_of(arm, "split1") for arm in (LABELS, UPSTREAM)], [outcome(30), outcome(50)])
    assert not any(figure.ok for figure in claim_figures(one, 5, UPSTREAM))  # one pair has no standard error
    assert figures["steps to where labels end"].value == 0.5


def test_parts_that_do_not_fit_are_left_out_and_the_plan_stays(tmp_path, capfd):
    config = config_of(tmp_path, core_hours=0.05, size=32, other_sizes=(), teacher_size=32)
    parts = [
        Part("small", [run_of(LABELS)]),
        Part("huge", [run_of(UPSTREAM, epochs=10**6)]),
        Part("last", [run_of(LABELS)]),
    ]
    (tmp_path / "real").mkdir()
    assert plan_parts(config, parts, {CHOICE: 100}) == ["small", "last"]
    assert "huge" in (said := capfd.readouterr().err) and "left out" in said
    plan = json.loads((tmp_path / "real/plan.json").read_text())
    assert plan["hours"]["huge"] > 1 > plan["hours"]["small"] > 0
    assert plan_parts(config, parts, {CHOICE: 10**9}) == ["small", "last"]  # the hours that it began with
    assert plan_parts(config, parts[:2], {CHOICE: 100}) == ["small"]  # other parts: counted anew


def test_a_folder_with_another_study_is_refused_by_the_key(tmp_path):
    (tmp_path / "real").mkdir()
    check_same_study(config_of(tmp_path))
    check_same_study(config_of(tmp_path, core_hours=2, seeds=5, rates=(0.1,)))
    with pytest.raises(ReskdError, match=r"holds another study:(.|\n)*size.*80.*112"):
        check_same_study(config_of(tmp_path, size=112))


def test_every_arm_is_a_config_of_losses():
    arms = [*screening_arms(False), *combined_arms(UPSTREAM, screening_arms(False)[8]), *detail_arms(UPSTREAM)]
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        assert LossConfig(**arm.losses).with_teacher, arm.name
    names = {name for arm in arms for name in arm.losses}
    assert {"feature_nmse", "feature_cosine", "feature_relation", "dist", "projector", "standardise_logits"} <= names


def test_two_classes_of_real_clips_go_through_the_whole_study_and_a_rerun_trains_nothing(jhmdb, tmp_path):
    with open(jhmdb / "clips.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("golf", "pullup")]
    kept, seen = [], {}
    for row in rows:  # two clips of eight sources to train on, of two to test on
        sources = seen.setdefault((row["label"], row["split1"]), {})
        if row["source"] in sources or len(sources) < (8 if row["split1"] == "train" else 2):
            sources[row["source"]] = sources.get(row["source"], 0) + 1
            kept += [row] if sources[row["source"]] <= 2 else []
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "source", "split1"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
    arguments = ["bench", "real", "--videos", jhmdb, "--list", tmp_path / "clips.csv", "--output", tmp_path / "real", "--quick",
                 "--set", "size=32", "--set", "teacher_size=48", "--set", "teacher_epochs=1", "--set", "lengths=[1]",
                 "--set", "views=1", "--set", "jobs=1",
                 "--set", 'arms=["upstream: feature_mse"]', "--json", tmp_path / "figures.json"]  # fmt: skip
    said = command(*arguments)
    assert "budget: 30 core-hours" in said and "chosen: " in said
    study = json.loads((tmp_path / "real/study.json").read_text())
    assert study["students"][0]["arm"]["name"] == LABELS.name and len(study["students"]) == 2
    assert set(study["nets"]["tuned-choice"]) == {"test", "one_frame", "curve"}
    assert set(study["frozen"]) == {"lite2 at 48 px", "lite0 at 48 px", "lite0 at 32 px"}
    assert all(50 <= top1 <= 100 for top1 in study["frozen"].values())  # of two classes that look different
    assert (tmp_path / "figures.png").exists() and (tmp_path / "figures.json").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "real/students").rglob("*.safetensors")}
    assert "chosen: " in command(*arguments) and before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "real/students").rglob("*.safetensors")} == before
