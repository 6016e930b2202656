"""Attempts: a command that must refuse its input with a message, in little memory, and write nothing elsewhere."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
from click.testing import CliRunner

from pipeline import cli

ROOM = 2 << 30  # bytes that an attempt may take


def refused(*arguments: object) -> str:
    """Run `pipeline.py ARGUMENTS`, which must end with a message and no traceback; returns what it said."""
    with little_memory():
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1, (done.exception, done.output)
    assert done.output.splitlines()[-1] != "" and "Error: " in done.output
    return done.output


def accepted(*arguments: object) -> str:
    with little_memory():
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """In the context this process gets a MemoryError beyond ROOM more bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def files(folder: Path) -> set[str]:
    """All that lies below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
