"""What runs in an actor: it checks its node, works on units in a thread, and reports what became of them.

The driver calls `report` again and again, with new units where the last report asked for one. There is never more than
one call under way, so the death of an actor is the error of that call. Nothing of ours that depends on the number of
threads (torch above all) may be imported before the actor has set it.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cache.errors import ReskdError, StoreError
from stages.engine.code_version import check_version


@dataclass(frozen=True)
class Start:
    """What an actor needs before it works."""

    version: dict[str, str]  # see `code_version`
    folder: str  # the driver's working directory: relative paths begin there
    relative: tuple[str, ...]  # the relative paths that the work uses
    threads: int  # of a forward, as in the driver
    neighbours: int  # actors of this node, which share its cores and its memory
    work: bytes  # a pickled Work; it is read after the version has been checked


@dataclass(frozen=True)
class Failure:
    """`refused`: this node can't do the work. `unit`: a unit can't be done. `run`: a disk or a store failed, for all units.
    `crash`: anything else; the actor's state is unknown."""

    kind: Literal["refused", "unit", "run", "crash"]
    reason: str


@dataclass
class Report:
    """What has happened since the last report."""

    begun: list[str] = field(default_factory=list)  # units of which something is computed
    amount: dict[str, int] = field(default_factory=dict)  # unit -> how much more of it is computed
    done: dict[str, Any] = field(default_factory=dict)  # unit -> result
    lines: list[str] = field(default_factory=list)  # messages for the user
    wants: bool = False  # whether it waits for a unit
    ended: bool = False
    failure: Failure | None = None


class Tell:
    """The side of the work: what it tells the driver. Any thread may call the methods."""

    def __init__(self):
        self.changed, self.next, self.urgent = threading.Condition(), Report(), False

    def begun(self, unit: str) -> None:
        self._add(lambda report: report.begun.append(unit))

    def amount(self, unit: str, more: int) -> None:
        self._add(lambda report: report.amount.update({unit: report.amount.get(unit, 0) + more}), urgent=False)

    def done(self, unit: str, result: Any = None) -> None:
        self._add(lambda report: report.done.update({unit: result}))

    def line(self, text: str) -> None:
        self._add(lambda report: report.lines.append(text), urgent=False)

    def _add(self, change: Callable[[Report], object], urgent: bool = True) -> None:
        with self.changed:
            change(self.next)
            self.urgent |= urgent
            self.changed.notify_all()

    def write(self, text: str) -> None:
        """The file of rich's console: whole lines."""
        for line in text.splitlines():
            if line.strip():
                self.line(line.rstrip())

    def flush(self) -> None:
        pass

    def take(self, seconds: float) -> Report:
        """The report, once there is something that the driver waits for; at the latest after `seconds`."""
        end = time.monotonic() + seconds
        with self.changed:
            while not self.urgent and (left := end - time.monotonic()) > 0:
                self.changed.wait(left)
            report, self.next, self.urgent = self.next, Report(wants=self.next.wants, ended=self.next.ended), False
            return report


class Units:
    """The units of an actor, with their names, in the order in which the driver gives them. It ends with the run."""

    def __init__(self, tell: Tell):
        self.tell, self.given, self.last, self.asked = tell, [], False, False

    def give(self, units: dict[str, Any], last: bool) -> None:
        with self.tell.changed:
            self.given += units.items()
            self.last |= last
            self.tell.next.wants &= not units
            self.tell.changed.notify_all()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        while (unit := self.take()) is not None:
            yield unit

    def take(self, seconds: float = float("inf")) -> tuple[str, Any] | None:
        """The next unit; None at the end. Raises TimeoutError if none has come for `seconds`."""
        end = time.monotonic() + seconds
        with self.tell.changed:
            self.asked = True
            while not self.given and not self.last:
                if not self.tell.next.wants:
                    self.tell.next.wants = self.tell.urgent = True
                    self.tell.changed.notify_all()
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.tell.changed.wait(min(left, 3600))
            return self.given.pop(0) if self.given else None


# Does the units that come, and tells what became of them. Before the first unit is taken, it raises ReskdError if this
# node can't do the work.
Work = Callable[[Units, Tell], None]


class Actor:
    """Ray makes it in a process of its own."""

    def __init__(self):
        self.tell = Tell()
        self.units, self.thread = Units(self.tell), None

    def report(self, start: Start | None, units: dict[str, Any], last: bool, seconds: float) -> Report:
        """Give the actor units; it answers when there is news, or after `seconds`. `start`: with the first call.

        `last`: no more units will come.
        """
        if start is not None:
            self.thread = threading.Thread(target=self._work, args=(start,), name="units", daemon=True)
            self.thread.start()
        self.units.give(units, last)
        return self.tell.take(seconds)

    def _work(self, start: Start) -> None:
        failure = None
        try:
            _set_up(start, self.tell)
            work: Work = pickle.loads(start.work)
            work(self.units, self.tell)
        except (ReskdError, OSError) as error:
            of_all = isinstance(error, StoreError | OSError)
            failure = Failure("refused" if not self.units.asked else "run" if of_all else "unit", str(error))
        except BaseException:
            failure = Failure("crash", traceback.format_exc())
        with self.tell.changed:
            self.tell.next.failure, self.tell.next.ended, self.tell.urgent = failure, True, True
            self.tell.changed.notify_all()


def _set_up(start: Start, tell: Tell) -> None:
    """Check the version, and make this process like the driver: its folder, its threads, its share of the node."""
    check_version(start.version)
    if Path(start.folder).is_dir():
        os.chdir(start.folder)
    elif start.relative:
        raise ReskdError(
            f"{start.relative[0]} is a path relative to {start.folder}, which is not there: give absolute paths"
        )
    os.environ["OMP_NUM_THREADS"] = str(start.threads)  # Ray has set another number
    os.environ["LOCAL_WORLD_SIZE"] = str(start.neighbours)
    from stages.runtime.terminal import console

    console.file, console.width = tell, 200
