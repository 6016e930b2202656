"""Runs the pipeline's commands in processes of their own, which can be killed, without paying the imports each time.

The process of the tests imports everything once. Then `start_zygote` forks it, before it has data or threads, and the
fork forks for each command: `Zygote.start([...])`.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[1]
GPUS = len(list(Path("/dev").glob("nvidia[0-9]*")))  # whoever asks may not have imported torch


@dataclass(frozen=True)
class Command:
    """A command at work in a process group of its own (its DataLoader workers are in it)."""

    pid: int
    output: Path
    status: Path

    def wait(self, timeout: float = 120) -> int:
        """The exit status; -9 where it was killed."""
        end = time.monotonic() + timeout
        while not self.status.exists():
            assert time.monotonic() < end, f"still running: {self.said()}"
            time.sleep(0.005)
        return int(self.status.read_text())

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


class Zygote:
    """The side of the tests. `requests` and `replies` are the pipes to and from the forked process, in `folder` it writes."""

    def __init__(self, process: int, requests: int, replies: int):
        self.process, self.folder, self.commands = process, Path(), []
        self.requests, self.replies = os.fdopen(requests, "w"), os.fdopen(replies)

    def start(self, arguments: list[str], cwd: Path = ROOT, project: Path = ROOT, **environment: str) -> Command:
        """Start a command of the pipeline, torchrun or ["python", SCRIPT, ...]. `project`: where the code is, a copy of ours."""
        name = str(len(self.commands))
        output, status = self.folder / f"{name}.txt", self.folder / f"{name}.status"
        request = [list(map(str, arguments)), str(cwd), str(project), environment, str(output), str(status)]
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        self.commands.append(Command(int(self.replies.readline()), output, status))
        return self.commands[-1]

    def run(
        self, arguments: list[str], expect: int = 0, cwd: Path = ROOT, project: Path = ROOT, **environment: str
    ) -> str:
        """Run to the end; returns what it said."""
        command = self.start(arguments, cwd, project, **environment)
        status = command.wait()
        assert status == expect, command.said()
        return command.said()

    def run_ranks(self, arguments: list[str], world: int, expect: int = 0, **environment: str) -> str:
        """Run a command on `world` ranks to the end; returns what rank 0 said."""
        commands = self.start_ranks(arguments, world, **environment)
        for command in commands:
            assert command.wait() == expect, command.said()
        return commands[0].said()

    def start_ranks(self, arguments: list[str], world: int, **environment: str) -> list[Command]:
        """Start a command on `world` ranks, with the environment that torchrun gives each. On GPUs, if each has its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": free.getsockname()[1]}
        texts = {key: str(value) for key, value in common.items()} | {"MASTER_ADDR": "127.0.0.1"} | environment
        if world > GPUS:
            texts["CUDA_VISIBLE_DEVICES"] = ""
        return [self.start(arguments, RANK=str(r), LOCAL_RANK=str(r), **texts) for r in range(world)]

    def kill_all(self) -> None:
        for command in self.commands:
            if not command.status.exists():
                command.kill()

    def close(self) -> None:
        self.kill_all()
        self.requests.close()
        os.kill(
            self.process, signal.SIGKILL
        )  # it may see no end of `requests`: other forks of the tests hold them open
        os.waitpid(self.process, 0)


def start_zygote() -> Zygote:
    """Import all that any command imports, and fork.

    The first backward is done here: after an export to ONNX it would start threads, and then no fork could do a backward.
    """
    import stages

    for module in pkgutil.walk_packages(stages.__path__, "stages."):
        importlib.import_module(module.name)
    if not GPUS:
        import torch

        torch.ones(1, requires_grad=True).backward()
    (requests, ours), (theirs, replies) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _close_all_but(requests, replies)  # the pipes of whoever runs the tests, the write end of `requests`
            _serve(os.fdopen(requests), os.fdopen(replies, "w"))
        finally:
            os._exit(0)
    os.close(requests)
    os.close(replies)
    return Zygote(pid, ours, theirs)


def _close_all_but(*kept: int) -> None:
    """Close all files but the three standard streams and `kept`."""
    for below, above in pairwise([2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]):
        os.closerange(below + 1, above)


def _serve(requests: TextIO, replies: TextIO) -> None:
    import torch

    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # OpenMP's threads don't survive a fork; and one thread adds in one order
    waiting = {}
    for line in requests:
        *request, status = json.loads(line)
        pid = os.fork()
        if pid == 0:
            # A grandchild does the work, so that its parent can wait for it while this process reads on.
            worker = os.fork()
            if worker == 0:
                _child(*request)
            print(worker, file=replies, flush=True)
            _, code = os.waitpid(worker, 0)
            Path(status + ".part").write_text(str(os.waitstatus_to_exitcode(code)))
            os.replace(status + ".part", status)
            os._exit(0)
        waiting[pid] = status
        for done in list(waiting):
            if os.waitpid(done, os.WNOHANG)[0]:
                del waiting[done]


def _child(arguments: list[str], cwd: str, project: str, environment: dict[str, str], output: str) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        os.environ.update(environment)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(file if stream else os.open(os.devnull, os.O_RDONLY), stream)
            setattr(sys, name, os.fdopen(stream, "w" if stream else "r"))
        _close_all_but()
        sys.argv = ["pipeline.py", *arguments]
        if project != str(ROOT):
            _use_code_of(project)
        if arguments[0] == "torchrun":
            from torch.distributed.run import main

            main(arguments[1:])
            sys.exit(0)
        if arguments[0] == "python":
            sys.argv = arguments[1:]
            runpy.run_path(arguments[1], run_name="__main__")
            sys.exit(0)
        import pipeline

        pipeline.cli()
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _use_code_of(project: str) -> None:
    """Forget our own modules, so that they are imported from `project`. Those of the libraries stay."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "stages", "cache")]:
        del sys.modules[name]
    sys.path.insert(0, project)
