"""Runs units of work on the actors of a cluster: who works on what, what is done again, what is given up."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from cache.errors import ReskdError
from stages.engine.actor import Failure, Report, Start, Work
from stages.engine.code_version import code_version
from stages.engine.engine import Engine
from stages.engine.ray_cluster import ActorLost, Cluster, Node, ray_cluster
from stages.remote.url_path import Location
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console

TRIES = 3  # deaths of its actor after which a unit is given up; failed starts after which a node is left alone
AHEAD = 2  # units that an actor has at most: the input of the next one is read during the work on the first
NEWS = 1.0  # seconds after which an actor that has no news reports
NODES = 300.0  # seconds in which a cluster without nodes must get one
SLOW = 60.0  # seconds after which it is said that no actor begins
GOODBYE = 30.0  # seconds that actors have to end


@dataclass(frozen=True)
class Job:
    """Work for an engine.

    `threads`: of each actor; None: the node's cores are shared out. `cores`: that one actor fills; it decides how many a
    node without GPUs gets. `output`: the folder for Ray's own files. `size`: unit -> its part of the progress.
    """

    work: Work
    units: Mapping[str, Any]
    size: Mapping[str, int]
    title: str
    progress_unit: str
    output: Location
    inputs: tuple[Location, ...]
    threads: int | None = None
    cores: int = 1
    strict: bool = False  # whether the first unit that can't be done ends the run


@dataclass
class Outcome:
    """`results`: of the units that are done. `failed`: unit -> reason. `deaths`: of actors. `redone`: units whose work was lost
    with their actor, and was begun again."""

    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    deaths: int = 0
    redone: int = 0


@dataclass(eq=False)
class _Member:
    """An actor, and what it works on."""

    actor: Any
    node: Node
    call: Any  # the report that it owes
    units: list[str] = field(default_factory=list)  # given and not done, in order
    begun: set[str] = field(default_factory=set)
    amount: Counter = field(default_factory=Counter)  # of the units, so far
    hired: float = field(default_factory=time.monotonic)  # when it was asked for
    heard: bool = False  # whether it has reported
    alone: bool = False  # whether its unit is a suspect: it gets no other one beside it


def run_units(engine: Engine, job: Job) -> Outcome:
    """Do all units, each at least once. A unit must be one that can be repeated.

    Actors take units as they are free. The units of one that dies go to others. A unit that was at work in an actor's death
    is tried again alone; at the third death it is given up.
    Raises ReskdError if no node can do the work, and at the first error of a disk or a store.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ReskdError(
            "--engine ray starts its processes itself: run the command without torchrun, or leave --engine out"
        )
    if not job.units:
        return Outcome()
    with ray_cluster(engine.address, job.output) as cluster, progress_bar(job.progress_unit) as bar:
        run = _Run(cluster, engine, job, bar)
        try:
            run.work()
            run.say_goodbye()
        finally:
            for member in run.members:
                cluster.end_actor(member.actor)
    return run.outcome


class _Run:
    def __init__(self, cluster: Cluster, engine: Engine, job: Job, bar: Progress):
        self.cluster, self.engine, self.job, self.bar = cluster, engine, job, bar
        self.outcome, self.members, self.waiting = Outcome(), [], deque(job.units)
        self.deaths: Counter = Counter()  # of a unit's actors
        self.bad_starts: Counter = Counter()  # of a node's actors, one after another
        self.said_slow = False  # that no actor begins
        self.refused: dict[str, str] = {}  # node -> why it gets no actor
        self.looked_at, self.had_nodes = float("-inf"), time.monotonic()  # when nodes were counted, when there were any
        self.version, self.pickled = code_version(), pickle.dumps(job.work)
        self.task, self.began = bar.add_task(job.title, total=sum(job.size.values()), rate=0.0, note=""), None

    def work(self) -> None:
        while len(self.outcome.results) + len(self.outcome.failed) < len(self.job.units):
            self._hire()
            calls = {member.call: member for member in self.members}
            for call in self.cluster.wait(list(calls), NEWS) if calls else ():
                self._hear(calls[call])
            self._check_hired()
            self._show()
            if not calls:
                time.sleep(NEWS)

    def say_goodbye(self) -> None:
        """Let the actors end, so that they close what they have opened."""
        end = time.monotonic() + GOODBYE
        while self.members and time.monotonic() < end:
            calls = {member.call: member for member in self.members}
            for call in self.cluster.wait(list(calls), NEWS):
                member = calls[call]
                try:
                    ended = self._note(member, self.cluster.answer(call)).ended
                except ActorLost:
                    ended = True
                if ended:
                    self._dismiss(member)
                else:
                    member.call = member.actor.report.remote(None, {}, True, NEWS)

    def _hire(self) -> None:
        """Start the actors that the nodes have room for, on new nodes too."""
        if time.monotonic() - self.looked_at < NEWS:
            return
        self.looked_at, all_nodes = time.monotonic(), self.cluster.nodes()
        on_gpus = any(node.gpus for node in all_nodes)
        nodes = [
            node for node in all_nodes if node.gpus or not on_gpus
        ]  # a head without GPUs gets no actor beside them
        free = len(self.waiting) - sum(not member.units for member in self.members)
        for node in nodes:
            count = self._actors_of(node)
            there = sum(member.node.id == node.id for member in self.members)
            for _ in range(min(count - there, free) if node.name not in self.refused else 0):
                self._start(node, count, on_gpus)
                free -= 1
        if nodes:
            self.had_nodes = time.monotonic()
        if time.monotonic() - self.had_nodes > NODES:
            raise ReskdError(
                f"the cluster has had no processors for {NODES:g} s: add nodes (ray start --address …), {RUN_AGAIN}"
            )
        if not self.members and nodes and all(node.name in self.refused for node in nodes):
            reasons = "\n".join(f"{node.name}: {self.refused[node.name]}" for node in nodes)
            raise ReskdError(f"no node can do the work:\n{reasons}")

    def _check_hired(self) -> None:
        """Say when no actor begins, since others have the cluster's processors; after NODES seconds, raise ReskdError."""
        if any(member.heard for member in self.members) or not self.members or self.began is not None:
            return
        waited = time.monotonic() - min(member.hired for member in self.members)
        if waited > SLOW and not self.said_slow:
            self.said_slow = True
            console.print(f"[yellow]waiting[/] for processors of the cluster, {waited:.0f} s so far: see `ray status`")
        if waited > NODES:
            raise ReskdError(f"no actor has begun in {NODES:g} s: others may have the cluster's processors (see `ray status`). "
                             f"When they are free, {RUN_AGAIN}")  # fmt: skip

    def _actors_of(self, node: Node) -> int:
        if self.engine.actors is not None or node.gpus:
            return self.engine.actors or node.gpus
        return max(1, min(int(node.cpus) // self.job.cores, len(self.job.units)))

    def _start(self, node: Node, count: int, on_gpus: bool) -> None:
        threads = self.job.threads or max(1, int(node.cpus) // count)
        here = tuple(str(path) for path in self.job.inputs if isinstance(path, Path) and not path.is_absolute())
        start = Start(self.version, os.getcwd(), here, threads, count, self.pickled)
        share = min(1.0, node.cpus / count) if on_gpus else node.cpus / count
        actor = self.cluster.start_actor(node, share, 1 if on_gpus else 0)
        self.members.append(_Member(actor, node, actor.report.remote(start, {}, False, NEWS)))

    def _hear(self, member: _Member) -> None:
        """Take in a member's report, and answer it with units."""
        try:
            report = self._note(member, self.cluster.answer(member.call))
        except ActorLost as lost:
            self._lose(member, str(lost))
            return
        if report.failure is not None:
            self._fail(member, report.failure)
        elif report.ended:
            self._lose(member, "it ended before its work was done")
        else:
            units = self._units_for(member) if report.wants else []
            member.units += units
            given = {name: self.job.units[name] for name in units}
            member.call = member.actor.report.remote(None, given, False, NEWS)

    def _note(self, member: _Member, report: Report) -> Report:
        member.heard = True
        for line in report.lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if report.wants or report.done:
            self.bad_starts.pop(member.node.name, None)
        if report.wants and self.began is None:
            self.began = time.perf_counter()  # the rate leaves the starts out
        member.begun |= set(report.begun)
        for name, more in report.amount.items():
            member.amount[name] += more
            self.bar.advance(self.task, more)
        for name, result in report.done.items():
            member.units.remove(name)
            self.outcome.results[name] = result
            self.bar.advance(self.task, self.job.size[name] - member.amount.pop(name, 0))
        member.alone &= bool(member.units)
        return report

    def _units_for(self, member: _Member) -> list[str]:
        """The next unit. One that has been at work in a death is done by an actor that has no other one."""
        for name in () if member.alone or len(member.units) >= AHEAD else self.waiting:
            if not (self.deaths[name] and member.units):
                self.waiting.remove(name)
                member.alone = bool(self.deaths[name])
                return [name]
        return []

    def _fail(self, member: _Member, failure: Failure) -> None:
        where = member.node.name
        if failure.kind == "refused":
            self._dismiss(member)
            if where not in self.refused:
                console.print(f"[yellow]left out[/] node {where}: {failure.reason}", highlight=False)
            self.refused[where] = failure.reason
        elif failure.kind == "run":
            raise ReskdError(f"node {where}: {failure.reason}. What is finished stays: {RUN_AGAIN}")
        elif failure.kind == "unit" and member.units:
            self._give_up(member.units.pop(0), f"node {where}: {failure.reason}")
            self._dismiss(member)
            if self.job.strict or (len(self.outcome.failed) >= TRIES and not self.outcome.results):
                raise ReskdError("\n".join(self.outcome.failed.values()))
        else:
            self._lose(member, failure.reason)

    def _lose(self, member: _Member, reason: str) -> None:
        """An actor has died: its units are done again, or given up."""
        where = member.node.name
        self.outcome.deaths += 1
        console.print(f"[yellow]lost[/] an actor on node {where}: {reason}", highlight=False)
        self.outcome.redone += sum(n == 0 or name in member.begun for n, name in enumerate(member.units))
        if not member.units:
            self.bad_starts[where] += 1
            if self.bad_starts[where] >= TRIES:
                self.refused[where] = f"{TRIES} actors died there before they had work; the last one: {reason}"
        for name in list(member.units):
            self.deaths[name] += 1
            if self.deaths[name] >= TRIES:
                member.units.remove(name)
                self._give_up(name, f"its actor died {TRIES} times; the last time on node {where}: {reason}")
        self._dismiss(member)

    def _give_up(self, name: str, reason: str) -> None:
        self.outcome.failed[name] = f"{name}: {reason}"
        console.print(f"[bold red]failed[/] {name}: {reason}; the others go on", highlight=False)

    def _dismiss(self, member: _Member) -> None:
        """End an actor. Others get its units."""
        self.cluster.end_actor(member.actor)
        self.members.remove(member)
        self.waiting.extendleft(reversed(member.units))
        self.bar.advance(self.task, -sum(member.amount.values()))
        self.looked_at = float("-inf")

    def _show(self) -> None:
        seconds = time.perf_counter() - self.began if self.began else float("inf")
        nodes = len({member.node.id for member in self.members})
        flying = sum(len(member.units) for member in self.members)
        note = f"{nodes} nodes, {flying} units in flight, {len(self.outcome.failed)} failed"
        self.bar.update(self.task, rate=self.bar.tasks[0].completed / seconds, note=note)
