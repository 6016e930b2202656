"""The command line: help that teaches, errors without tracebacks, paths as they are."""

import pytest
from click.testing import CliRunner

from pipeline import cli
from stages.shards.dataset import open_dataset


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.mark.parametrize("command", ["demo", "prepare", "cache-teacher", "pack", "train-student", "evaluate"])
def test_every_command_has_help(command):
    done = run(command, "--help")
    assert done.exit_code == 0 and "--set KEY=VALUE" in done.output and command in run("--help").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-student", "--set", "output=o", "--set", "data.train=nowhere"], "nowhere"),
        (["train-student"], "output: missing"),
        (["cache-teacher", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "nothing.safetensors", "--data", "nowhere"], "nothing.safetensors"),
        (["prepare", "nowhere", "--output", "out"], "nowhere"),
        (["prepare"], "source: missing"),
    ],
)
def test_errors_are_messages(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 1 and said in done.output and "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_path_keeps_its_blanks_colons_and_hashes(data, tmp_path):
    folder = tmp_path / "my: videos #1"
    (folder / "0-up").mkdir(parents=True)
    for path in sorted((data.videos / "val").rglob("*.mp4"))[:3]:
        (folder / "0-up" / path.name).write_bytes(path.read_bytes())
    output = tmp_path / "data #2"
    assert run("prepare", folder, "--output", output, "--set", "workers=0").exit_code == 0
    assert open_dataset(output).classes == ("0-up",)


def test_dry_runs_write_nothing(data, teacher, tmp_path):
    common = ["--dry-run", "--set", f"output={tmp_path / 'x'}"]
    train = ["--set", f"data.train={data.train}", "--set", "model.backbone=resnet18"]
    assert run("train-student", *common, *train).exit_code == 0
    cache = ["--set", f"data={data.train}", "--set", f"teacher.checkpoint={teacher}", "--set", "policy.num_frames=4"]
    assert run("cache-teacher", *common, *cache).exit_code == 0
    assert not list(tmp_path.iterdir())
