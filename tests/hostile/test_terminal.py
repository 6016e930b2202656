"""Names of files, clips and classes that are orders to a terminal, or markup: printable text alone is shown."""

import io
import os
import pty
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from stages.runtime.terminal import Terminal, printable
from tests.media import encode_video, moving_square

CLEAR, LINK, TURNED = "\x1b[2J", "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\", "\u202egpm.exe"
ORDERS = [CLEAR, LINK, TURNED, "a\rb", "\x9b31m", "\x07bell", "\x7f", "[red]red[/]", "[link=http://evil.example]x[/link]",
          "[/]", ":dog:", "\udc80"]  # fmt: skip
STYLES = re.compile(r"\x1b\[[0-9;]*m")  # what rich itself writes for colours


def shown(*parts: object, **options: object) -> str:
    """What a terminal with colours gets, without the colours."""
    file = io.StringIO()
    Terminal(file=file, force_terminal=True, color_system="standard", width=200).print(*parts, **options)
    return STYLES.sub("", file.getvalue())


@pytest.mark.parametrize("order", ORDERS, ids=ascii)
def test_strings_tables_and_titles_are_shown_as_they_are(order):
    table = Table("column " + order, title="title " + order)
    table.add_row(order)
    for said in (shown(order), shown(f"[yellow]warning[/] {order}"), shown(order, markup=False), shown(table)):
        assert all(char.isprintable() or char == "\n" for char in said)
        assert printable(order) in said
    assert shown(f"[yellow]warning[/] {order}").startswith("warning ")


@given(st.text())
def test_printable_text_is_printable_and_plain_text_stays(text):
    said = printable(text)
    assert all(char.isprintable() or char in "\n\t" or char.isspace() for char in said)
    assert not set(said) & {"\x1b", "\r", "\x9b", "\u202e", "\u2028", "\x85"}
    if text.isprintable():
        assert said == text


def in_a_terminal(*arguments: object) -> str:
    """What `pipeline.py ARGUMENTS` writes if its output is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "pipeline.py", *map(os.fspath, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=theirs, stdout=theirs, stderr=theirs,
                               env=environment)  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the process has ended
            break
        said += part
        if not part:
            break
    os.close(ours)
    process.wait(60)
    return said.decode()


def test_a_command_in_a_terminal_shows_hostile_names_without_obeying_them(tmp_path):
    videos = tmp_path / "videos"
    for name in (f"class{CLEAR}", "[red]class"):
        (videos / name).mkdir(parents=True)
        (videos / name / f"clip{LINK.replace('/', '_')}\r[link=x].mp4").write_bytes(b"no video")
    said = in_a_terminal("prepare", videos, "--output", tmp_path / "out", "--set", "workers=0")
    assert "none of 2 clips is readable" in said and "[red]class" in said.replace("\r\n", "")
    rest = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", said)  # of rich: colours, and the cursor of its bar
    assert CLEAR not in said and "\x1b" not in rest
    assert r"\x1b]8;;" in rest and r"\r[link=x]" in rest


def test_a_hostile_key_in_a_tar_is_a_message_and_no_order(tmp_path):
    (tmp_path / "tars").mkdir()
    video = encode_video(moving_square(4, 32, 32))
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        for name in (f"{CLEAR}[red].mp4", f"{CLEAR}[red].mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(video)
            tar.addfile(info, io.BytesIO(video))
    said = in_a_terminal("prepare", tmp_path / "tars", "--output", tmp_path / "out")
    assert "occurs twice" in said and r"\x1b[2J[red].mp4" in said and CLEAR not in said
