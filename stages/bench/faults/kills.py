"""Commands that are killed, stopped by signals, or lose a decoding process; and two writers, few open files, another clock."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psutil

from stages.bench.faults.process import PROGRAM, TIMEOUT, Ended, run, start
from stages.bench.faults.stages import OUTPUT, Stage, difference, new_folder, run_again

FEW_FILES = 256


def random_kills(folder: Path, stage: Stage, kills: int) -> Iterator[str | None]:
    """SIGKILL at random instants, half of them to the decoding processes, too; then a rerun. Yields what is wrong."""
    chance = random.Random(stage.name)
    for number in range(kills):
        ended = None
        while ended is None or ended.status == 0:  # it was faster than the signal
            ended = _signalled(
                new_folder(folder), stage, signal.SIGKILL, chance.uniform(0, stage.seconds), number % 2 == 0
            )
        yield f"ended by {ended.status}" if ended.status != -signal.SIGKILL else run_again(stage, folder)


def commit_kills(folder: Path, stage: Stage, stride: int) -> Iterator[str | None]:
    """SIGKILL just before or just after each `stride`-th rename of the command, in turns; then a rerun."""
    calls = folder.with_name(f"{folder.name}.calls")
    ended = run(stage.arguments, new_folder(folder), lambda: _at_renames(lambda _: _append(calls), lambda _: None))
    total = calls.stat().st_size
    calls.unlink()
    if ended.status != 0 or not total:
        yield f"{total} renames, status {ended.status}: {ended.last_lines()}"
    for number in range(0, total, stride):
        before = number // stride % 2 == 0
        die, go_on = _death_at(number), lambda _: None
        hooks = (die, go_on) if before else (go_on, die)
        ended = run(stage.arguments, new_folder(folder), lambda: _at_renames(*hooks))  # noqa: B023
        fault = run_again(stage, folder) if ended.status == -signal.SIGKILL else f"not killed but {ended.status}"
        yield fault and f"rename {number} of {total}: {fault}"


def _at_renames(before: Callable[[int], None], after: Callable[[int], None]) -> None:
    """Call `before` and `after` with the number of each rename of this process, at the rename."""
    numbers = count()

    def watched(real: Callable[..., None]) -> Callable[..., None]:
        def rename(*args, **options):
            number = next(numbers)
            before(number)
            real(*args, **options)
            after(number)

        return rename

    os.replace, os.rename = watched(os.replace), watched(os.rename)


def _append(file: Path) -> None:
    with open(file, "ab") as out:
        out.write(b".")


def _death_at(number: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == number else None


def signals(folder: Path, stage: Stage, times: int) -> Iterator[str | None]:
    """SIGTERM and SIGINT at random instants: the status is 143 or 130, nothing is lost, and a rerun goes on.

    A training says that all is saved. The status of a process that SIGTERM ends at once is 143 in a shell.
    """
    chance, trains = random.Random(stage.name), stage.name.startswith("train-student")
    for number in [signal.SIGTERM, signal.SIGINT] * times:
        ended, rows = None, (2 if trains else 0)
        while ended is None or ended.status == 0:
            delay = chance.uniform(0.2, 0.8) * stage.seconds if not trains else chance.uniform(0, 0.1)
            ended = _signalled(new_folder(folder), stage, number, delay, chance.random() < 0.5, rows)
        wanted = {signal.SIGTERM: (143,) if trains else (143, -15), signal.SIGINT: (130,)}[number]
        if ended.status not in wanted:
            yield f"{number.name}: status {ended.status}: {ended.last_lines()}"
        elif trains and not (ended.says("all is saved") and (folder / OUTPUT / "last.pt").exists()):
            yield f"{number.name}: not saved: {ended.last_lines()}"
        elif "Traceback" in ended.text:
            yield f"{number.name}: a traceback: {ended.last_lines()}"
        else:
            yield run_again(stage, folder)


def _signalled(folder: Path, stage: Stage, number: int, delay: float, group: bool, rows: int = 0) -> Ended:
    """Send a signal `delay` seconds after the start, or after so many rows of a training's log, and wait for the end."""
    command = start(stage.arguments, folder)
    log, end = folder / OUTPUT / "metrics.jsonl", time.monotonic() + TIMEOUT
    while rows and time.monotonic() < end and (not log.exists() or log.read_bytes().count(b"\n") < rows):
        time.sleep(0.002)
    time.sleep(delay)
    command.send(number, group)
    return command.wait()


def killed_workers(folder: Path, stage: Stage, kills: int) -> Iterator[str | None]:
    """A decoding process is killed at a random instant: the command ends as if nothing was."""
    chance = random.Random(stage.name)
    for _ in range(kills):
        killed, status, text = False, 0, ""
        while not killed and status == 0:  # some instants are before or after the processes' work
            command = start(stage.arguments, new_folder(folder))
            time.sleep(chance.uniform(0.1, 0.9) * stage.seconds)
            killed = _kill_a_child(command.pid, chance)
            ended = command.wait()
            status, text = ended.status, ended.last_lines()
        yield difference(stage, folder) if status == 0 else f"status {status}: {text}"


def _kill_a_child(pid: int, chance: random.Random) -> bool:
    try:
        children = psutil.Process(pid).children(recursive=True)
        if children:
            chance.choice(children).kill()
        return bool(children)
    except psutil.Error:
        return False


def two_writers(folder: Path, stage: Stage, times: int) -> Iterator[str | None]:
    """Two commands write the same output at once: one is refused, or both end in the same content."""
    for _ in range(times):
        new_folder(folder)
        commands = [start(stage.arguments, folder) for _ in range(2)]
        ended = [command.wait() for command in commands]
        faults = [one.fault(OUTPUT) for one in ended if one.status != 0]
        yield next(filter(None, faults), None) or ("both failed" if len(faults) == 2 else difference(stage, folder))


def few_files(folder: Path, stage: Stage) -> Iterator[str | None]:
    """At most 256 open files."""
    ended = run(stage.arguments, new_folder(folder),
                lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES)))  # fmt: skip
    yield difference(stage, folder) if ended.status == 0 else f"status {ended.status}: {ended.last_lines()}"


def find_faketime() -> Path | None:
    """libfaketime, in the folders of LD_LIBRARY_PATH, or where Debian, Fedora and others install it."""
    folders = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    folders += [*Path("/usr/lib").glob("*/faketime"), Path("/usr/lib64/faketime"), Path("/usr/local/lib/faketime")]
    # Not libfaketimeMT: it holds a lock that a fork inherits.
    found = [file for folder in folders for file in sorted(folder.glob("libfaketime.so*"))]
    return found[0] if found else None


def clock_set_back(folder: Path, stage: Stage, faketime: Path) -> Iterator[str | None]:
    """In the middle of the command its clock (not the machine's) goes back by two days."""
    clock = folder.with_name(f"{folder.name}.clock")
    clock.write_text("+0")
    environment = os.environ | {"LD_PRELOAD": str(faketime), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    new_folder(folder)
    printed = folder / "printed.txt"
    with open(printed, "wb") as out:
        process = subprocess.Popen([sys.executable, str(PROGRAM), *stage.arguments], cwd=folder, env=environment, stdout=out,
                                   stderr=out, start_new_session=True)  # fmt: skip
    while process.poll() is None and not (folder / OUTPUT).exists():
        time.sleep(0.002)
    at_work = process.poll() is None
    _write_clock(clock, "-2d")
    try:
        ended = Ended(process.wait(TIMEOUT), printed.read_text(errors="replace"))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        ended = Ended(None, f"still at work after {TIMEOUT} s")
    if ended.status != 0:
        yield f"status {ended.status}: {ended.last_lines()}"
    else:
        yield difference(stage, folder) if at_work else "it had ended before"


def _write_clock(clock: Path, text: str) -> None:
    part = clock.with_suffix(".part")
    part.write_text(text)
    shutil.move(part, clock)
