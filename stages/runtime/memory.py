"""The memory of a process and its children, and of the machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from stages.runtime.distributed import ranks_of_machine

# A container's limit and use of memory, in bytes, and the name of the reclaimable part in memory.stat.
_CGROUPS = ((Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip


def available_memory() -> int:
    """Bytes that new allocations can have without swapping, in the machine and within the container's limit."""
    available = psutil.virtual_memory().available
    for folder, limit, used, reclaimable in _CGROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = int((folder / limit).read_text()) - int((folder / used).read_text()) + int(stat[reclaimable])
            available = min(available, max(0, free))
    return available


def memory_of_rank() -> int:
    """The share of `available_memory` that one rank of this machine may take."""
    return available_memory() // ranks_of_machine()


def memory_of_tree(pid: int | None = None) -> float:
    """MB of a process (None: this one) and all its descendants.

    A page that several processes share counts once (PSS). If the system doesn't give PSS, it counts in each of them.
    """
    total, process = 0, psutil.Process(pid)
    for p in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = p.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total / 1e6


@contextlib.contextmanager
def peak_memory(every: float = 1.0, so_far: float = 0.0) -> Iterator[Callable[[], float]]:
    """Measures `memory_of_tree` every `every` seconds. Gives a function that returns the peak until now, in MB.

    `so_far`: the peak of earlier runs, in MB.
    """
    peak, stop = [so_far], threading.Event()

    def measure() -> float:
        peak[0] = max(peak[0], memory_of_tree())
        return peak[0]

    def sample() -> None:
        while not stop.wait(every):
            measure()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield measure  # it measures once more, so that work shorter than `every` has a peak, too
    finally:
        stop.set()
        thread.join()
