"""The memory of a process and its children."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psutil


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

    def sample() -> None:
        while not stop.wait(every):
            peak[0] = max(peak[0], memory_of_tree())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()
