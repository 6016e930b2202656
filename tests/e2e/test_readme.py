"""The READMEs: their commands as they stand, over a folder of class folders of videos; their options, links and tables."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline import cli
from stages.demo.digits import CLASSES, draw_clip, encode_clip
from tests.runs import command

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "README.md"
WITH_PAGES = (
    "cache",
    "configs",
    *(f"stages/{room}" for room in ("bench", "distill", "predict", "prepare", "report", "video")),
)
PAGES = [MAIN, *(ROOT / folder / "README.md" for folder in WITH_PAGES)]
RUN = {  # the sections of the main page, in the order in which their commands are run
    "Your own videos": ["prepare", "prepare", "train-student", "cache-teacher", "train-student", "evaluate"],
    "Many students": ["train-student", "sweep"],
    "Students that decode no video": ["pack", "pack", "train-student", "evaluate"],
    "Use a student": ["predict", "export", "export", "report"],
}
DRY = {"Many students"}
ELSEWHERE = [["demo"]]  # run by test_demo.py
LOOKS = ("inspect-cache", "verify-cache")  # commands of the table that only look


def blocks(page: Path, section: str | None = None) -> list[list[str]]:
    """The arguments of each `pipeline.py` command in a page's shell blocks, or in those of one section."""
    text = page.read_text()
    if section:
        text = text.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    found = [re.search(r"pipeline\.py (.*)", line) for line in lines if not line.startswith("#")]
    return [shlex.split(match.group(1), comments=True) for match in found if match]


def table() -> list[list[str]]:
    """The arguments of each command in the last column of "what you have"."""
    rows = MAIN.read_text().split("## What you have → which command\n")[1].split("\n## ")[0].splitlines()
    spans = [span for row in rows[3:] for span in re.findall(r"`([^`]+)`", row.rpartition(" | ")[2])]
    return [shlex.split(span) for span in spans if span.split()[0] in cli.commands and " " in span]


@pytest.fixture
def own_videos(tmp_path):
    """Two clips of each of two classes to train on, one to validate on."""
    for split, count in (("train", 2), ("val", 1)):
        for label in range(2):
            folder = tmp_path / "my_videos" / split / CLASSES[label]
            folder.mkdir(parents=True)
            for index in range(count):
                clip = draw_clip(split=split, label=label, seed=0, index=index)
                (folder / f"{index}.mp4").write_bytes(encode_clip(clip))
    return tmp_path


def test_the_main_page_is_short_and_every_command_in_it_is_run():
    assert len(MAIN.read_text().splitlines()) <= 200
    assert blocks(MAIN) == ELSEWHERE + [step for section in RUN for step in blocks(MAIN, section)]


def test_every_page_names_commands_and_options_that_exist():
    for page in PAGES:
        for arguments in [*blocks(page), *(table() if page == MAIN else [])]:
            found, rest = cli.commands[arguments[0]], arguments[1:]
            if isinstance(found, click.Group):
                found, rest = found.commands[rest[0]], rest[1:]
            found.make_context(found.name, rest)  # raises for an unknown option
    assert len(table()) >= 15


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are made of them: lower case, dashes for blanks, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
            if not target.startswith("http"):
                file = (page.parent / target) if target else page
                assert file.exists(), f"{page}: {target}"
                assert not anchor or anchor in anchors(file), f"{page}: {target}#{anchor}"


def test_your_own_videos(own_videos, tmp_path, monkeypatch, zygote):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for section, names in RUN.items():
        steps = blocks(MAIN, section)
        assert [step[0] for step in steps] == names
        for step in steps:
            if section == "Your own videos":
                zygote.run(step, cwd=tmp_path)
            elif step[0] == "export":
                assert Path(step[1]).exists()  # tests/export does this, and it takes long
            else:  # in this process, which has its imports already
                command(*step, *(["--dry-run"] if section in DRY else []))
    for step in table():
        if step[0] in LOOKS or "--dry-run" in step:
            command(*step)
    score = json.loads((tmp_path / "runs/own/student/test.json").read_text())
    assert score["clips"] == 2 and score["size"] == 56
