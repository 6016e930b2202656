"""Clocks of the benches that leave other programs out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

RUNS = 5


def cpu_seconds(work: Callable[[], object], runs: int = RUNS) -> list[float]:
    """CPU seconds of so many runs, of all threads of this process together, after one that isn't counted."""
    work()
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return times


def core_seconds() -> float:
    """A clock of seconds of cores: those that this process and its children, once they have ended, computed on, and those
    in which a core that they may use had nothing to do; in hundredths, as the system counts these.

    Of work that leaves no core idle it counts the CPU seconds; on a machine of its own, the wall clock times the cores.
    Other programs' seconds count nowhere, but what they do to caches and to threads that wait for one another does.
    """
    ended = os.times()
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = [times for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in mine]
    idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
    return time.process_time() + ended.children_user + ended.children_system + idle
