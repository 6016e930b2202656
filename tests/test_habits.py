"""What all commands have in common: --json, progress in logs, colours, exit statuses, the command that may come next."""

import io
import json
import shutil

import pytest
from click.testing import CliRunner

from pipeline import cli
from stages.config.json_result import json_text
from stages.runtime import progress
from stages.runtime.terminal import Terminal
from tests.runs import QUICK


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def commands(data, teacher, cached, folder):
    """A command line for each command that prints a result, and a key of its JSON."""
    train = [
        f"data.train={data.val}",
        "size=16",
        *QUICK,
        "schedule.epochs=1",
        "batch_size=40",
        f"output={folder / 'run'}",
    ]
    cache = [f"data={data.val}", f"teacher.checkpoint={teacher}", "policy.num_frames=4", f"output={folder / 'c.zarr'}"]
    return {
        "prepare": (["prepare", data.videos / "val", "--output", folder / "data", "--set", "workers=0"], "quarantine"),
        "prepare again": (["prepare", data.videos / "val", "--output", folder / "data"], "classes"),
        "train-student": (["train-student", *(x for key in train for x in ("--set", key))], "clips_seen"),
        "cache-teacher": (
            ["cache-teacher", "--dry-run", "--probe", 0, *(x for key in cache for x in ("--set", key))],
            None,
        ),
        "inspect-cache": (["inspect-cache", cached], "clip_views"),
        "verify-cache": (["verify-cache", cached], "problems"),
        "evaluate": (["evaluate", teacher, "--data", data.val, "--set", "loader.workers=0"], "top1"),
        "pack": (["pack", "--data", data.val, "--output", folder / "pack", "--frames", "all", "--dry-run"], None),
    }


def test_json_is_the_result_on_standard_output_and_nothing_else(data, teacher, cached, tmp_path):
    for name, (command, key) in commands(data, teacher, cached, tmp_path).items():
        done = run(*command, "--json", "-")
        assert done.exit_code == 0, (name, done.output)
        result = json.loads(done.stdout)
        assert key is None or key in result, name


def test_json_goes_into_a_file_and_messages_stay(data, teacher, tmp_path):
    done = run("evaluate", teacher, "--data", data.val, "--set", "loader.workers=0", "--json", tmp_path / "new/a.json")
    assert done.exit_code == 0 and "top1" in done.stderr and not done.stdout
    assert json.loads((tmp_path / "new/a.json").read_text())["clips"] == 40


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    done = run("evaluate", "nothing.safetensors", "--data", "nowhere", "--json", tmp_path / "file" / "a.json")
    assert done.exit_code == 1 and "a.json can't be written" in done.output
    assert run("models", "--json", tmp_path).exit_code == 2  # a folder


def test_problems_are_in_the_json_and_in_the_exit_status(cached, tmp_path):
    broken = tmp_path / "broken.zarr"
    shutil.copytree(cached, broken)
    next(p for p in sorted(broken.rglob("*")) if p.is_file() and p.suffix != ".json").write_bytes(b"other")
    done = run("verify-cache", broken, "--json", "-")
    assert done.exit_code == 1 and json.loads(done.stdout)["problems"]


def test_json_has_no_numbers_that_are_not_finite():
    assert json.loads(json_text({"a": float("nan"), "b": [float("inf"), 1.5], 3: "é"})) == {
        "a": None,
        "b": [None, 1.5],
        "3": "é",
    }


def test_without_a_terminal_progress_is_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress_bar("clips") as bar:
        task = bar.add_task("prepare", total=8, rate=0.0, note="")
        bar.update(task, advance=2, rate=3.0, note="shard [red]x[/]\x1b[2J")
    first, *_, last = capsys.readouterr().err.splitlines()
    assert "prepare" in first and "2/8" in first and "3.0 clips/s" in first and "ETA" in first
    assert r"shard [red]x[/]\x1b[2J" in last and "\x1b" not in last


def test_lines_are_thirty_seconds_apart(monkeypatch, capsys):
    clock = iter(range(0, 2000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    bar = progress.ProgressLines(*progress.progress_bar("clips").columns, console=progress.console)
    bar.printed_at = 0.0
    task = bar.add_task("train", total=100, rate=0.0, note="")
    capsys.readouterr()
    updates = 60
    for _ in range(updates):
        bar.advance(task)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < updates / 2  # a clock that ticks several times an update


def test_a_terminal_gets_a_bar_and_no_color_is_obeyed(monkeypatch):
    monkeypatch.setattr(progress, "console", Terminal(file=io.StringIO(), force_terminal=True))
    assert type(progress.progress_bar("clips")) is progress.Progress
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        text = io.StringIO()
        Terminal(file=text, force_terminal=True, color_system="standard", _environ=environment).print(
            "[yellow]warning[/] x"
        )
        assert ("\x1b[33m" in text.getvalue()) == coloured


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--version"], 0), (["models", "--size", 5000], 1), (["models", "-x"], 2)]
)
def test_exit_statuses(arguments, status):
    assert run(*arguments).exit_code == status


def test_a_training_names_the_command_that_makes_its_report(data, tmp_path):
    sets = [
        f"data.train={data.val}",
        "size=16",
        *QUICK,
        "schedule.epochs=1",
        "batch_size=40",
        f"output={tmp_path / 'a b'}",
    ]
    done = run("train-student", *(x for key in sets for x in ("--set", key)))
    assert done.exit_code == 0
    assert f"pipeline.py report '{tmp_path}/a b' --output '{tmp_path}/a b/report.html'" in done.output
