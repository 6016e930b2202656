"""The actors of a run: how many each node of the cluster gets, and which nodes get none."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.engine.actor import Start
from stages.engine.code_version import code_version
from stages.engine.engine import Engine, Job
from stages.engine.ray_cluster import Cluster, Node
from stages.runtime.interrupt import RUN_AGAIN
from stages.runtime.terminal import console

TRIES = 3  # failed starts after which a node is left alone; deaths of its actor after which a unit is given up
NEWS = 1.0  # seconds after which an actor that has no news reports
NODES = 300.0  # seconds in which a cluster without nodes must get one
SLOW = 60.0  # seconds after which it is said that no actor begins


@dataclass(eq=False)
class Member:
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

    def ask(self, units: dict[str, Any], last: bool = False) -> None:
        """Give it units, and ask for the next report. `last`: no more units will come."""
        self.call = self.actor.report.remote(None, units, last, NEWS)


class ActorPool:
    def __init__(self, cluster: Cluster, engine: Engine, job: Job):
        self.cluster, self.engine, self.job, self.members = cluster, engine, job, []
        self.bad_starts: Counter = Counter()  # of a node's actors, one after another
        self.said_slow = False  # that no actor begins
        self.refused: dict[str, str] = {}  # node -> why it gets no actor
        self.looked_at, self.had_nodes = float("-inf"), time.monotonic()  # when nodes were counted, when there were any
        self.version, self.pickled = code_version(), pickle.dumps(job.work)

    def fill(self, waiting: int) -> None:
        """Start the actors that the nodes have room for, on new nodes too. `waiting`: units that no actor has."""
        if time.monotonic() - self.looked_at < NEWS:
            return
        self.looked_at, all_nodes = time.monotonic(), self.cluster.nodes()
        on_gpus = any(node.gpus for node in all_nodes)
        nodes = [node for node in all_nodes if node.gpus or not on_gpus]  # a head without GPUs gets no actor
        free = waiting - sum(not member.units for member in self.members)
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

    def check_starts(self) -> None:
        """Say when no actor begins, since others have the cluster's processors; after NODES seconds, raise ReskdError."""
        if any(member.heard for member in self.members) or not self.members:
            return
        waited = time.monotonic() - min(member.hired for member in self.members)
        if waited > SLOW and not self.said_slow:
            self.said_slow = True
            console.print(f"[yellow]waiting[/] for processors of the cluster, {waited:.0f} s so far: see `ray status`")
        if waited > NODES:
            raise ReskdError(f"no actor has begun in {NODES:g} s: others may have the cluster's processors (see `ray status`). "
                             f"When they are free, {RUN_AGAIN}")  # fmt: skip

    def note_start(self, node: Node) -> None:
        """An actor of the node works."""
        self.bad_starts.pop(node.name, None)

    def note_bad_start(self, node: Node, reason: str) -> None:
        """An actor of the node has died before it had work."""
        self.bad_starts[node.name] += 1
        if self.bad_starts[node.name] >= TRIES:
            self.refused[node.name] = f"{TRIES} actors died there before they had work; the last one: {reason}"

    def refuse(self, node: Node, reason: str) -> None:
        """The node can't do the work: it gets no more actors."""
        if node.name not in self.refused:
            console.print(f"[yellow]left out[/] node {node.name}: {reason}", highlight=False)
        self.refused[node.name] = reason

    def end(self, member: Member) -> None:
        self.cluster.end_actor(member.actor)
        self.members.remove(member)
        self.looked_at = float("-inf")

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
        self.members.append(Member(actor, node, actor.report.remote(start, {}, False, NEWS)))
