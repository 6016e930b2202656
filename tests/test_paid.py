"""What the teacher was paid for: noted in the manifest over reruns, kills and ranks, and compared with nothing."""

import json

import pytest

from cache.group import load_manifest
from cache.teacher_time import TeacherTime, open_time_log, teacher_time_of
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.inspect_cache import inspect_cache
from stages.teacher.target_writer import TargetWriter
from tests.runs import cache_config


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def config(data, teacher, tmp_path):
    return cache_config(tmp_path / "t.zarr", type(data)(train=data.val), teacher, "targets.features=null")


def test_teacher_time_is_noted_shown_and_added_up(config, capfd):
    result = cache_teacher(config)
    paid = load_manifest(config.output).notes["paid"]
    assert result["teacher_time"] == paid and paid["clip_views"] == 80
    assert 0 < paid["forward_seconds"] < paid["seconds"] < result["seconds"]
    assert "for 80 clip·views" in " ".join(capfd.readouterr().err.split())
    before = contents(config.output)
    cache_teacher(config)  # nothing to do, nothing to pay
    assert contents(config.output) == before
    cache_teacher(config.model_copy(update={"views": 3}))
    grown = load_manifest(config.output).notes["paid"]
    assert grown["clip_views"] == 120 and all(grown[name] > paid[name] for name in paid)
    inspect_cache(config.output)
    assert "for 120 clip·views" in " ".join(capfd.readouterr().out.split())


def test_what_a_stopped_run_spent_is_not_forgotten(config, monkeypatch):
    write, batches = TargetWriter.write, []

    def stopped(self, part, wait):
        write(self, part, wait)
        batches.append(part.view)
        if len(batches) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TargetWriter, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(config)
    monkeypatch.undo()
    spent = teacher_time_of(config.output, load_manifest(config.output).notes)
    assert spent.clip_views == 16 + 16 + 16 and load_manifest(config.output).notes == {}
    cache_teacher(config)
    assert load_manifest(config.output).notes["paid"]["clip_views"] == 80 + 48  # computed again, paid again
    assert not list(config.output.glob(".paid*"))


def test_a_cache_without_the_note_goes_on(config):
    cache_teacher(config)
    file = config.output / "zarr.json"
    node = json.loads(file.read_text())
    del node["attributes"]["notes"]["paid"]
    file.write_text(json.dumps(node, sort_keys=True, separators=(",", ":")))
    before = contents(config.output)
    assert cache_teacher(config)["teacher_time"] is None and contents(config.output) == before
    inspect_cache(config.output)
    cache_teacher(config.model_copy(update={"views": 3}))
    assert load_manifest(config.output).notes["paid"]["clip_views"] == 40  # what is known


def test_ledgers_of_ranks_are_summed_and_a_cut_line_is_left_out(tmp_path):
    assert teacher_time_of(tmp_path, {}) is None
    for rank in range(2):
        record = open_time_log(tmp_path, rank, began=0.0)
        record(0.5, 4)
        record(0.25, 3)
    (cut,) = tmp_path.glob(".paid-1-*.jsonl")
    cut.write_text(cut.read_text() + '{"forward_seconds": 0.')
    open_time_log(tmp_path, 1, began=0.0)(0.5, 1)
    paid = teacher_time_of(tmp_path, {"paid": {"forward_seconds": 1.0, "clip_views": 10, "seconds": 0.0}})
    assert (paid.forward_seconds, paid.clip_views) == (1.0 + 1.5 + 0.5, 10 + 14 + 1)
    assert (
        str(TeacherTime(2.0, 100, 9.0))
        == "teacher time: 2.0 s of forwards for 100 clip·views, 20.00 ms each; stage one took 9.0 s"
    )
