"""Runs units of work on the actors of a cluster: who works on what, what is done again, what is given up."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from cache.errors import ReskdError
from stages.engine.actor import Failure, Report
from stages.engine.actor_pool import NEWS, TRIES, ActorPool, Member
from stages.engine.engine import Engine, Job
from stages.engine.ray_cluster import ActorLost, Cluster, ray_cluster
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console

AHEAD = 2  # units that an actor has at most: the input of the next one is read during the work on the first
GOODBYE = 30.0  # seconds that actors have to end


@dataclass
class Outcome:
    """`results`: of the units that are done. `failed`: unit -> reason. `deaths`: of actors. `redone`: units whose work was lost
    with their actor, and was begun again."""

    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    deaths: int = 0
    redone: int = 0


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
            for member in run.pool.members:
                cluster.end_actor(member.actor)
    return run.outcome


class _Run:
    def __init__(self, cluster: Cluster, engine: Engine, job: Job, bar: Progress):
        self.cluster, self.job, self.bar, self.pool = cluster, job, bar, ActorPool(cluster, engine, job)
        self.outcome, self.waiting = Outcome(), deque(job.units)
        self.deaths: Counter = Counter()  # of a unit's actors
        self.task, self.began = bar.add_task(job.title, total=sum(job.size.values()), rate=0.0, note=""), None

    def work(self) -> None:
        while len(self.outcome.results) + len(self.outcome.failed) < len(self.job.units):
            self.pool.fill(len(self.waiting))
            calls = {member.call: member for member in self.pool.members}
            for call in self.cluster.wait(list(calls), NEWS) if calls else ():
                self._hear(calls[call])
            if self.began is None:
                self.pool.check_starts()
            self._show()
            if not calls:
                time.sleep(NEWS)

    def say_goodbye(self) -> None:
        """Let the actors end, so that they close what they have opened."""
        end = time.monotonic() + GOODBYE
        while self.pool.members and time.monotonic() < end:
            calls = {member.call: member for member in self.pool.members}
            for call in self.cluster.wait(list(calls), NEWS):
                member = calls[call]
                try:
                    ended = self._note(member, self.cluster.answer(call)).ended
                except ActorLost:
                    ended = True
                if ended:
                    self._dismiss(member)
                else:
                    member.ask({}, last=True)

    def _hear(self, member: Member) -> None:
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
            member.ask({name: self.job.units[name] for name in units})

    def _note(self, member: Member, report: Report) -> Report:
        member.heard = True
        for line in report.lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if report.wants or report.done:
            self.pool.note_start(member.node)
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

    def _units_for(self, member: Member) -> list[str]:
        """The next unit. One that has been at work in a death is done by an actor that has no other one."""
        for name in () if member.alone or len(member.units) >= AHEAD else self.waiting:
            if not (self.deaths[name] and member.units):
                self.waiting.remove(name)
                member.alone = bool(self.deaths[name])
                return [name]
        return []

    def _fail(self, member: Member, failure: Failure) -> None:
        where = member.node.name
        if failure.kind == "refused":
            self._dismiss(member)
            self.pool.refuse(member.node, failure.reason)
        elif failure.kind == "run":
            raise ReskdError(f"node {where}: {failure.reason}. What is finished stays: {RUN_AGAIN}")
        elif failure.kind == "unit" and member.units:
            self._give_up(member.units.pop(0), f"node {where}: {failure.reason}")
            self._dismiss(member)
            if self.job.strict or (len(self.outcome.failed) >= TRIES and not self.outcome.results):
                raise ReskdError("\n".join(self.outcome.failed.values()))
        else:
            self._lose(member, failure.reason)

    def _lose(self, member: Member, reason: str) -> None:
        """An actor has died: its units are done again, or given up."""
        where = member.node.name
        self.outcome.deaths += 1
        console.print(f"[yellow]lost[/] an actor on node {where}: {reason}", highlight=False)
        self.outcome.redone += sum(n == 0 or name in member.begun for n, name in enumerate(member.units))
        if not member.units:
            self.pool.note_bad_start(member.node, reason)
        for name in list(member.units):
            self.deaths[name] += 1
            if self.deaths[name] >= TRIES:
                member.units.remove(name)
                self._give_up(name, f"its actor died {TRIES} times; the last time on node {where}: {reason}")
        self._dismiss(member)

    def _give_up(self, name: str, reason: str) -> None:
        self.outcome.failed[name] = f"{name}: {reason}"
        console.print(f"[bold red]failed[/] {name}: {reason}; the others go on", highlight=False)

    def _dismiss(self, member: Member) -> None:
        """End an actor. Others get its units."""
        self.pool.end(member)
        self.waiting.extendleft(reversed(member.units))
        self.bar.advance(self.task, -sum(member.amount.values()))

    def _show(self) -> None:
        seconds = time.perf_counter() - self.began if self.began else float("inf")
        nodes = len({member.node.id for member in self.pool.members})
        flying = sum(len(member.units) for member in self.pool.members)
        note = f"{nodes} nodes, {flying} units in flight, {len(self.outcome.failed)} failed"
        self.bar.update(self.task, rate=self.bar.tasks[0].completed / seconds, note=note)
