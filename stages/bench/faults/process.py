"""Commands of the pipeline in processes of their own, which can be killed. They are forked, so that the imports are done once."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

# All that the commands import: whoever imports this file has it, and its forks have it, too.
import stages.evaluate.evaluate
import stages.packs.pack
import stages.prepare.prepare
import stages.student.cohort_config
import stages.sweep.config
import stages.sweep.sweep
import stages.teacher.cache_teacher
import stages.teacher.verify_cache  # noqa: F401
from stages.runtime.fresh_process import start_by_default

PROGRAM = Path(__file__).parents[3] / "pipeline.py"
TIMEOUT = 180  # seconds; a command that takes longer hangs
_numbers = count()


@dataclass(frozen=True)
class Command:
    """A command at work, in a process group of its own."""

    pid: int
    output: Path

    def send(self, number: int, group: bool) -> None:
        """Send a signal to the command alone, or to its decoding processes, too."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def ended(self) -> Ended | None:
        """How it has ended; None while it is at work."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            return None
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        self.output.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), text)

    def wait(self) -> Ended:
        end = time.monotonic() + TIMEOUT
        while (ended := self.ended()) is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL, group=True)
                os.waitpid(self.pid, 0)
                return Ended(None, f"still at work after {TIMEOUT} s")
            time.sleep(0.005)
        return ended


@dataclass(frozen=True)
class Ended:
    """`status`: the exit status, minus the number of the signal that ended it, or None for a command that hung."""

    status: int | None
    text: str  # what it printed

    def says(self, name: str) -> bool:
        """Whether it names a file, though the line may be broken anywhere."""
        return re.sub(r"\s", "", name) in re.sub(r"\s", "", self.text)

    def fault(self, name: str) -> str | None:
        """Why this is not an error for the user that names the file `name`; None if it is."""
        if self.status == 0:
            return "no error"
        if self.status is None or self.status < 0:
            return f"ended by {self.status}: {self.last_lines()}"
        if "Traceback" in self.text:
            return f"a traceback: {self.last_lines()}"
        return None if self.says(name) else f"{name} isn't named: {self.last_lines()}"

    def last_lines(self) -> str:
        return " / ".join(self.text.strip().splitlines()[-3:])[-400:]


def start(arguments: Sequence[str], folder: Path, first: Callable[[], object] | None = None) -> Command:
    """Start `pipeline.py ARGUMENTS` in `folder`. `first` is called in the new process, before the command."""
    output = folder.with_name(f"{folder.name}.{os.getpid()}.{next(_numbers)}.txt")
    pid = os.fork()
    if pid == 0:
        _become(arguments, folder, output, first)
    with contextlib.suppress(OSError):  # here and there, so that it is done before anybody needs it
        os.setpgid(pid, pid)
    return Command(pid, output)


def run(arguments: Sequence[str], folder: Path, first: Callable[[], object] | None = None) -> Ended:
    return start(arguments, folder, first).wait()


def in_fork(function: Callable[..., str], *arguments: object) -> str:
    """What `function` returns in a fork. Raises RuntimeError if the fork fails."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            os.write(writing, function(*arguments).encode()[:60_000])
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{function.__name__} failed in a process of its own")
    return text


def _become(arguments: Sequence[str], folder: Path, output: Path, first: Callable[[], object] | None) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(file, stream)
            setattr(sys, name, os.fdopen(stream, "w", closefd=False))
        os.chdir(folder)
        start_by_default()
        sys.argv = [str(PROGRAM), *arguments]
        sys.path.insert(0, str(PROGRAM.parent))
        os.fsync = lambda descriptor: None  # a kill loses nothing that was written; power cuts aren't tried
        torch.set_num_threads(1)  # OpenMP's threads don't survive a fork; and one thread adds in one order
        if first is not None:
            first()
        runpy.run_path(str(PROGRAM), run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
