"""The clocks of the benches. They don't count the time of other programs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

RUNS = 5


def cpu_seconds(work: Callable[[], object], runs: int = RUNS) -> list[float]:
    """The CPU seconds of each of `runs` runs, summed over the threads of this process. One run before is not counted."""
    work()
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return times


def core_seconds() -> float:
    """A clock in core seconds: the CPU seconds of this process and its ended children, plus the idle seconds of the cores
    that they may use. The system counts these in hundredths of a second.

    If no core is idle, this is CPU time. On a machine without other programs it is wall time times cores. Seconds of
    other programs don't count. Yet other programs slow the work down: they fill CPU caches and delay waiting threads.
    """
    times = os.times()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = [core for number, core in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
    idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
    return time.process_time() + times.children_user + times.children_system + idle
