"""A grid of students over one cache: in as few streams as they fit into, resumable, with its cost."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.teacher_time import open_time_log, teacher_time_of
from stages.metrics.spread import SeedScores
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.remote.url_path import UrlPath
from stages.runtime.interrupt import Interrupted
from stages.student import loop
from stages.student.config import OptimConfig
from stages.student.train_student import train_student
from stages.sweep.config import load_sweep
from stages.sweep.cost import teacher_cost
from stages.sweep.pareto_front import Point, pareto_front
from stages.sweep.plan import halves
from stages.sweep.sweep import run_sweep
from tests.runs import QUICK, command


@pytest.fixture
def file(few, few_cached, tmp_path):
    path = tmp_path / "student.yaml"
    lines = [f"output: {tmp_path / 'sweep'}", "size: 16", "losses: {logit_kl: 1.0}",
             f"data: {{train: {few.train}, val: {few.val}, cache: {few_cached}}}"]  # fmt: skip
    path.write_text("\n".join(lines))
    return path


SET = [*QUICK, "schedule.epochs=1", "batch_size=10"]  # four steps


def test_a_grid_is_trained_scored_and_told(file, few, tmp_path):
    sets = [part for change in SET for part in ("--set", change)]
    said = command("sweep", "--config", file, *sets, "--grid", "size=16,24", "--grid", "seed=0,1", "--test", few.val)
    out = tmp_path / "sweep"
    result = json.loads((out / "sweep.json").read_text())
    assert set(result["students"]) == {f"size={size},seed={seed}" for size in (16, 24) for seed in (0, 1)}
    assert [p["name"] for p in result["points"]] == ["size=16", "size=24"]  # over seeds
    for point in result["points"]:
        scores = [result["students"][f"{point['name']},seed={seed}"]["score"] for seed in (0, 1)]
        assert point["score"] == pytest.approx(np.mean(scores))
        assert point["score_std"] == pytest.approx(np.std(scores, ddof=1))
    assert result["points"][0]["gflops"] < result["points"][1]["gflops"]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    cost = result["cost"]
    assert cost["teacher_clip_views"] == 80 and cost["in_loop_clip_views"] == 4 * 40
    assert cost["decode_passes"] == 1 and cost["decode_passes_alone"] == 4
    scored = {name: (out / name / "test.json").stat().st_mtime_ns for name in result["students"]}
    before = {name: (out / name / "last.pt").stat().st_mtime_ns for name in result["students"]}

    command("sweep", "--config", file, *sets, "--grid", "size=16,24", "--grid", "seed=0,1,2", "--test", few.val)
    again = json.loads((out / "sweep.json").read_text())  # two more students, nothing done twice
    assert len(again["students"]) == 6 and again["cost"]["in_loop_clip_views"] == 6 * 40
    assert {name: again["students"][name] for name in result["students"]} == result["students"]
    assert again["cost"]["decode_passes"] == 2 and again["cost"]["decode_passes_alone"] == 6
    assert {name: (out / name / "last.pt").stat().st_mtime_ns for name in before} == before
    assert {name: (out / name / "test.json").stat().st_mtime_ns for name in scored} == scored
    assert "sweep.png" in said


def test_from_packs_two_halves_train_side_by_side_and_each_student_is_what_it_is_alone(
    file, few, few_cached, tmp_path, s3
):
    """At a URL: the first process has connections, the second one makes its own."""
    out = UrlPath(s3.bucket) / "halves" / "sweep"
    (out.parent.parent / "there").write_bytes(b"")  # the server makes a bucket at its first object
    pack(PackConfig(data=few.train, cache=few_cached, output=tmp_path / "pack", size=16, loader={"workers": 0}))
    changes = [*SET, f"data.pack={tmp_path / 'pack'}", "loader.resident=false", "data.val=null", f"output={out}"]
    students = load_sweep(file, changes, ["seed=0,1,2,3"])
    students["seed=3"] = students["seed=3"].model_copy(update={"optim": OptimConfig(lr=1e30)})
    with pytest.raises(ReskdError, match="1 of 4 students failed[^*]*seed=3: .* not finite"):
        run_sweep(students)
    result = json.loads((out / "sweep.json").read_bytes())
    assert set(result["students"]) == {"seed=0", "seed=1", "seed=2"} and set(result["failed"]) == {"seed=3"}
    assert set(result["cost"]["seconds"]) == {"seed=0 + seed=1", "seed=2 + seed=3"}
    for name in ("seed=1", "seed=2"):  # one of each half
        train_student(students[name].model_copy(update={"output": tmp_path / name}))
        assert (tmp_path / name / "last.safetensors").read_bytes() == (out / name / "last.safetensors").read_bytes()


@given(st.lists(st.integers(1, 9), max_size=5))
def test_halves_have_every_student_once_and_are_as_large(sizes):
    cohorts = [{f"{i}-{j}": None for j in range(size)} for i, size in enumerate(sizes)]
    first, second = halves(cohorts)
    assert sorted(name for cohort in [*first, *second] for name in cohort) == sorted(n for c in cohorts for n in c)
    assert all(any(cohort.items() <= whole.items() for whole in cohorts) for cohort in [*first, *second])
    assert abs(sum(map(len, first)) - sum(map(len, second))) <= 1


def test_students_that_cannot_share_a_stream_come_one_after_another(file, tmp_path):
    students = load_sweep(file, [*SET, "students={a: {}, b: {batch_size: 8}, c: {size: 24}}"])
    assert run_sweep(students, dry_run=True)["cohorts"] == [["a", "c"], ["b"]]
    assert run_sweep(students, at_once=1, dry_run=True)["cohorts"] == [["a"], ["c"], ["b"]]
    assert not (tmp_path / "sweep").exists()


def test_one_that_fails_leaves_the_rest_and_is_named(file, tmp_path):
    bad = "students={good: {}, bad: {optim: {name: sgd, lr: 1.0e+30}}, other: {batch_size: 8}}"
    students = load_sweep(file, [*SET, bad])
    with pytest.raises(ReskdError, match=r"1 of 3 students failed:[\s\S]*bad[\s\S]*not finite[\s\S]*run it again"):
        run_sweep(students)
    result = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert set(result["students"]) == {"good", "other"} and set(result["failed"]) == {"bad"}
    assert all(0 <= row["score"] <= 100 for row in result["students"].values())


@pytest.mark.parametrize("where", ["_optimizer_step", "_validate", "_finish"])
def test_a_signal_at_the_end_of_a_cohort_stops_the_sweep(file, tmp_path, monkeypatch, where):
    students = load_sweep(file, [*SET, "students={first: {}, second: {batch_size: 8}}"])
    work, last = getattr(loop, where), 4 - (where == "_optimizer_step")

    def signalled(chosen, *rest):
        run = chosen if where == "_finish" else chosen[0]
        if run.progress.step == last:
            signal.raise_signal(signal.SIGTERM)
        return work(chosen, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="at step 4 of 4; all is saved") as stopped:
        patch.setattr(loop, where, signalled)
        run_sweep(students)
    assert "run it again: it goes on" in str(stopped.value) and "--" not in str(stopped.value)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    done = tmp_path / "sweep" / "first" / "result.json"
    before = done.stat().st_mtime_ns
    assert not list((tmp_path / "sweep" / "second").glob("*"))
    assert set(run_sweep(students)["students"]) == set(students)
    assert done.stat().st_mtime_ns == before


def test_a_signal_beside_a_failure_stops_the_sweep(file, tmp_path, monkeypatch):
    """Both in one step: the loop ends by the failure, and the signal has its usual effect then."""
    students = load_sweep(file, [*SET, "students={bad: {optim: {name: sgd, lr: 1.0e+30}}, second: {batch_size: 8}}"])
    work = loop._optimizer_step

    def signalled(at_work, *rest):
        if at_work[0].progress.step == 1:
            signal.raise_signal(signal.SIGINT)
        return work(at_work, *rest)

    monkeypatch.setattr(loop, "_optimizer_step", signalled)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_sweep(students)
    finally:
        signal.signal(signal.SIGINT, old)
    assert not (tmp_path / "sweep" / "second").exists()


@pytest.mark.parametrize(
    "changes, grid, match",
    [
        ([], ["optim.lrr=0.1,0.2"], "student lrr=0.1:\n  optim.lrr: unknown key; did you mean 'lr'"),
        ([], ["size"], "the grid's 'size' must be a list"),
        ([], ["size=[16"], "are not YAML"),
        (["grid=5"], [], "`grid` must map"),
        (["students={a: }"], [], "`students` must map"),
        (["students={sweep.json: {}}"], [], "can't be called sweep.json"),
        (["students={a: {}, b: {output: null}}"], [], "output"),
        ([], ["losses.logit_kl=1,1.0"], "the students logit_kl=1 and logit_kl=1.0 are the same"),
        ([], ["size="], "the grid's 'size' must be a list"),
        ([], ["size=16,16"], "two students are called size=16"),
        ([], ["data.train=nowhere"], "nowhere"),
        (["students={a: {output: elsewhere}, b: {}}"], [], "in one folder"),
        (["students={a: {}, b: {batch_size: 8, data.views: 9}}"], [], "data.views 9"),
    ],
)
def test_refuses_before_any_training(file, tmp_path, changes, grid, match):
    with pytest.raises(ReskdError, match=match):
        run_sweep(load_sweep(file, [*SET, *changes], grid))
    assert not (tmp_path / "sweep").exists()


def test_refuses_a_folder_of_another_run_and_a_test_set_of_other_classes(file, few_cached, tmp_path):
    students = load_sweep(file, SET, ["seed=-1,1"])
    assert set(students) == {"seed=-1", "seed=1"}
    run_sweep(students)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("last.pt")}
    with pytest.raises(ReskdError, match=r"seed=-1 holds a run of another config:\n  optim.lr"):
        run_sweep(load_sweep(file, [*SET, "optim.lr=0.1"], ["seed=-1,1,2"]))
    for other in (tmp_path / "nowhere", few_cached):
        with pytest.raises(ReskdError, match=other.name):
            run_sweep(load_sweep(file, SET, ["seed=-1,1,2"]), test=other)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("last.pt")} == kept


def test_a_teachers_hours_are_those_of_each_cache(few_cached, tmp_path):
    clips, hours, loop = {}, 0.0, 0.0
    for name, seen, seconds in (("a", 100, 3600.0), ("b", 100_000, 360_000.0)):  # a cheap teacher, and a dear one
        cache = shutil.copytree(few_cached, tmp_path / name)
        open_time_log(cache, 0, time.perf_counter())(seconds, 0)
        clips[cache] = seen
        spent = teacher_time_of(cache, load_manifest(cache).notes)
        assert spent.forward_seconds > seconds and spent.clip_views == 80
        hours, loop = hours + spent.forward_seconds / 3600, loop + seen * spent.forward_seconds / 80 / 3600
    cost = teacher_cost(clips)
    assert cost["teacher_clip_views"] == 160 and cost["in_loop_clip_views"] == 100_100
    assert cost["teacher_hours"] == pytest.approx(hours) and cost["in_loop_hours"] == pytest.approx(loop)
    assert teacher_cost({}) == {"teacher_clip_views": 0, "in_loop_clip_views": 0, "teacher_hours": None,
                                  "in_loop_hours": None}  # fmt: skip


def test_the_front_holds_what_nothing_beats_for_less():
    scores = (("a", 1, 50), ("b", 2, 40), ("c", 2, 60), ("d", 3, 60), ("e", 9, 61))
    points = [Point(name, gflops, SeedScores((top1,))) for name, gflops, top1 in scores]
    assert [p.name for p in pareto_front(points)] == ["a", "c", "e"]
