"""Runs the pipeline's commands in processes of their own, which can be killed, without paying the imports each time.

One process imports everything and then forks for each command: `Zygote().start([...])`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.commands = folder, []
        with open(folder / "zygote.txt", "w") as said:  # a file: a process that is left behind holds nobody's pipe open
            self.process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=said, text=True)  # fmt: skip

    def start(self, arguments: list[str], cwd: Path = ROOT, **environment: str) -> Command:
        name = str(len(self.commands))
        output, status = self.folder / f"{name}.txt", self.folder / f"{name}.status"
        self.process.stdin.write(
            json.dumps([list(map(str, arguments)), str(cwd), environment, str(output), str(status)]) + "\n"
        )
        self.process.stdin.flush()
        self.commands.append(Command(int(self.process.stdout.readline()), output, status))
        return self.commands[-1]

    def run(self, arguments: list[str], expect: int = 0, cwd: Path = ROOT) -> str:
        """Run to the end; returns what it said."""
        command = self.start(arguments, cwd)
        status = command.wait()
        assert status == expect, command.said()
        return command.said()

    def run_ranks(self, arguments: list[str], world: int, expect: int = 0) -> str:
        """The command on `world` ranks, with the environment that torchrun gives each; returns what rank 0 said."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": free.getsockname()[1]}
        texts = {key: str(value) for key, value in common.items()} | {"MASTER_ADDR": "127.0.0.1"}
        commands = [self.start(arguments, RANK=str(r), LOCAL_RANK=str(r), **texts) for r in range(world)]
        for command in commands:
            assert command.wait() == expect, command.said()
        return commands[0].said()

    def kill_all(self) -> None:
        for command in self.commands:
            if not command.status.exists():
                command.kill()

    def close(self) -> None:
        self.kill_all()
        self.process.stdin.close()
        self.process.wait(60)


def _child(arguments: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    os.setpgid(0, 0)
    os.chdir(cwd)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["pipeline.py", *arguments]
    import pipeline

    code = 1
    try:
        pipeline.cli()
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    import importlib
    import pkgutil

    import torch

    import stages

    for module in pkgutil.walk_packages(stages.__path__, "stages."):  # all that any command imports
        importlib.import_module(module.name)

    torch.set_num_threads(1)  # OpenMP's threads don't survive a fork; and one thread adds in one order
    waiting = {}
    for line in sys.stdin:
        arguments, cwd, environment, output, status = json.loads(line)
        pid = os.fork()
        if pid == 0:
            # A grandchild does the work, so that its parent can wait for it while this process reads on.
            worker = os.fork()
            if worker == 0:
                _child(arguments, cwd, environment, output)
            print(worker, flush=True)
            _, code = os.waitpid(worker, 0)
            Path(status + ".part").write_text(str(os.waitstatus_to_exitcode(code)))
            os.replace(status + ".part", status)
            os._exit(0)
        waiting[pid] = status
        for done in list(waiting):
            if os.waitpid(done, os.WNOHANG)[0]:
                del waiting[done]


if __name__ == "__main__":
    _serve()
