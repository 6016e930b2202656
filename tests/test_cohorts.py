"""Several students on one stream: each is what it would be alone, and none stands or falls with another."""

import json

import pytest
import torch

from cache.errors import ReskdError
from stages.config.file import load_config
from stages.models.checkpoints import load_model
from stages.student.cohort_config import load_cohort
from stages.student.config import TrainConfig
from stages.student.train_student import train_cohort, train_student
from tests.runs import QUICK, command, cut_at, rows_of, train_config

WIDE = {"channels": [8, 16, 24, 24], "layers": [1, 1, 1, 1], "output_stride": 8}
# Of other widths, sizes, losses, seeds, optimizers, and lengths.
STUDENTS = {
    "first": {},
    "wide": {"model.args": WIDE, "losses": {"feature_mse": 2, "projector": "ensemble"}},
    "relations": {"losses": {"feature_relation": {"start": 3, "end": 0}, "dist": 1, "logit_kl": 0}},
    "large": {"size": 24, "seed": 7, "ema": 0.9},
    "seed": {"size": 20, "render_via": 32, "optim": {"name": "sgd"}, "accumulate": 1},
    "short": {"schedule.epochs": 1, "losses.logit_kl": 0, "losses.label_smoothing": 0.1},
}


def cohort_file(path, few, few_cached, students, *changes: str):
    """A config of several students, and those it holds."""
    base = load_config(TrainConfig, None, [f"output={path / 'run'}", f"data.train={few.train}", "size=16", *QUICK,
                                           f"data.cache={few_cached}", f"data.val={few.val}", "losses.logit_kl=1",
                                           "checkpoint_every=2", "batch_size=8", *changes])  # fmt: skip
    file = path / "cohort.yaml"
    file.write_text(json.dumps(base.model_dump(mode="json", exclude_unset=True) | {"students": students}))
    return file, load_cohort(file)


@pytest.fixture(scope="module")
def cohort(few, few_cached, tmp_path_factory):
    _, configs = cohort_file(tmp_path_factory.mktemp("cohort"), few, few_cached, STUDENTS)
    return configs, train_cohort(configs)


def alike(ours, theirs, exactly=True):
    there, here = (load_model(config.output / "last.safetensors")[0].state_dict() for config in (theirs, ours))
    assert all(torch.allclose(here[name], there[name], atol=0 if exactly else 1e-5, rtol=0) for name in there)


@pytest.mark.parametrize("name", STUDENTS)
def test_each_is_what_it_is_alone(cohort, name, tmp_path):
    configs, results = cohort
    alone = configs[name].model_copy(update={"output": tmp_path / "alone"})
    result = train_student(alone)
    assert result | {"seconds": 0} == results[name] | {"seconds": 0}
    assert rows_of(alone.output) == rows_of(configs[name].output)
    assert rows_of(alone.output, "val") == rows_of(configs[name].output, "val")
    alike(configs[name], alone)
    _, card = load_model(configs[name].output / "last.safetensors")
    assert card.size == configs[name].size and card.render_via == configs[name].render_via


def test_clips_come_in_the_order_of_the_config_whatever_a_students_seed(cohort):
    configs, results = cohort
    assert {config.data.order_seed for config in configs.values()} == {0} and configs["large"].seed == 7
    assert results["short"]["steps"] * 2 == results["first"]["steps"]


def test_resumes_where_its_members_are(few, few_cached, cohort, tmp_path):
    """Killed between the saves of two members: the one that is behind catches up, the other waits, a third is done."""
    whole, results = cohort
    _, configs = cohort_file(tmp_path, few, few_cached, STUDENTS)
    for name, step in (("first", 5), ("wide", 9), ("large", 3)):
        cut_at(configs[name], step)  # checkpoints at 4, 8 and 2
    train_student(configs["short"])
    again = train_cohort(configs, resume=True)
    assert {name: result["steps"] for name, result in again.items()} == {n: r["steps"] for n, r in results.items()}
    for name in configs:
        assert rows_of(configs[name].output) == rows_of(whole[name].output)
        alike(configs[name], whole[name])
    assert train_cohort(configs, resume=True) == again


def test_one_that_fails_does_not_stop_the_others(few, few_cached, cohort, tmp_path, capfd):
    whole, _ = cohort
    bad = {"optim": {"lr": 1e30, "name": "sgd"}, "seed": 3}
    _, configs = cohort_file(tmp_path, few, few_cached, {"bad": bad, **{n: STUDENTS[n] for n in ("first", "short")}})
    with pytest.raises(ReskdError, match=r"1 of 3 students failed, all others are finished:\n.*run/bad.*not finite"):
        train_cohort(configs)
    assert "the others go on" in " ".join(capfd.readouterr().err.split())
    assert not (configs["bad"].output / "result.json").exists()
    for name in ("first", "short"):
        alike(configs[name], whole[name])
    mended = dict(configs)
    mended["bad"] = configs["bad"].model_copy(update={"optim": configs["first"].optim, "output": tmp_path / "mended"})
    assert train_cohort(mended, resume=True)["bad"]["steps"] == 10  # alone; the others are left as they are


def test_a_teacher_in_the_loop_answers_once_for_all(few, teacher, tmp_path, monkeypatch):
    import stages.student.online_teacher as online

    calls, teacher_outputs = [], online.teacher_outputs
    monkeypatch.setattr(online, "teacher_outputs", lambda *a: calls.append(1) or teacher_outputs(*a))
    changes = [f"teacher.checkpoint={teacher}", "losses.feature_mse=2", "schedule.epochs=1", "batch_size=8"]
    shared = train_config(tmp_path / "a", few, *changes)
    other = train_config(tmp_path / "b", few, *changes, "size=24", "losses.logit_kl=1", "seed=1", "data.order_seed=0")
    train_cohort({"a": shared, "b": other})
    assert len(calls) == 5
    monkeypatch.undo()
    train_student(alone := other.model_copy(update={"output": tmp_path / "alone"}))
    assert rows_of(alone.output) == rows_of(other.output)


@pytest.mark.parametrize(
    "changes, key",
    [
        (["data.views=1"], r"data.views: it is None for a and 1 for b"),
        (["batch_size=8"], "batch_size"),
        (["seed=1"], "data.order_seed"),
        (["model.num_frames=2"], "model.num_frames"),
        (["loader.window=4"], "loader.window"),
    ],
)
def test_refuses_members_that_disagree(few, few_cached, tmp_path, changes, key):
    cache = f"data.cache={few_cached}"
    configs = {"a": train_config(tmp_path / "a", few, cache), "b": train_config(tmp_path / "b", few, cache, *changes)}
    with pytest.raises(ReskdError, match=f"must agree on {key}"):
        train_cohort(configs)
    assert not (tmp_path / "a").exists()


def test_refuses_one_output_for_two_before_work(few, tmp_path):
    config = train_config(tmp_path / "a", few)
    with pytest.raises(ReskdError, match="a and b have one output"):
        train_cohort({"a": config, "b": config})


@pytest.mark.parametrize(
    "students, match",
    [
        ({"a": {"optim.lrr": 1}}, "student a:\n  optim.lrr: unknown key; did you mean 'lr'"),
        ({"a": {"output.x": 1}}, "student a: output.x: 'output' is a value"),
        ({"../a": {}}, "must have a name"),
        ({}, "must map names"),
        ([1], "must map names"),
        ({"a": 3}, "must map names"),
    ],
)
def test_refuses_a_file_that_names_no_students(tmp_path, students, match):
    file = tmp_path / "cohort.yaml"
    file.write_text(json.dumps({"output": "x", "data": {"train": "y"}, "students": students}))
    with pytest.raises(ReskdError, match=match):
        load_cohort(file)


def test_by_the_command(few, few_cached, tmp_path):
    file, configs = cohort_file(tmp_path, few, few_cached, {n: STUDENTS[n] for n in ("first", "short")})
    command("train-student", "--config", file, "--dry-run")
    assert not (tmp_path / "run").exists()
    command("train-student", "--config", file, "--set", "schedule.epochs=1")
    assert {p.name for p in (tmp_path / "run").iterdir()} >= set(configs)
    assert all((config.output / "result.json").exists() for config in configs.values())
