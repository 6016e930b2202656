"""The README's "your own videos": its commands as they stand, over a folder of class folders of videos."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import cli
from stages.demo.digits import make_digits
from tests.zygote import Zygote

ROOT = Path(__file__).parents[2]


def commands(section: str) -> list[list[str]]:
    """The `uv run pipeline.py` lines of a section's shell blocks."""
    text = (ROOT / "README.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("uv run pipeline.py")]


@pytest.fixture
def own_videos(tmp_path):
    """Six clips of each of three classes to train on, three to validate on."""
    make_digits(tmp_path / "all", clips={"train": 240, "val": 120})
    for split, count in (("train", 6), ("val", 3)):
        for folder in sorted((tmp_path / "all" / split).iterdir())[:3]:
            for video in sorted(folder.iterdir())[:count]:
                target = tmp_path / "my_videos" / split / folder.name / video.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(video, target)
    return tmp_path


def test_the_zoos_table_is_what_the_command_prints():
    printed = CliRunner().invoke(cli, ["models"], env={"COLUMNS": "80"}).output
    assert "\n".join(line.rstrip() for line in printed.strip().splitlines()) in (ROOT / "README.md").read_text()


def test_your_own_videos(own_videos, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    zygote = Zygote(tmp_path / "said", cwd=tmp_path)
    steps = commands("Your own videos")
    assert [step[0] for step in steps] == [
        "prepare",
        "prepare",
        "train-student",
        "cache-teacher",
        "train-student",
        "evaluate",
    ]
    for step in steps:
        zygote.run(step)
    for step in commands("Many students"):
        zygote.run([*step, "--dry-run"])
    zygote.close()
    score = json.loads((tmp_path / "runs/own/student/test.json").read_text())
    assert score["clips"] == 9 and score["size"] == 56
