"""The memory of this process and all below it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psutil


def memory_of_tree(pid: int | None = None) -> float:
    """MB of a process (None: this one) and all below it. A page that several share counts once, by its shares (PSS);
    where the system doesn't tell them, in each."""
    total, process = 0, psutil.Process(pid)
    for p in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = p.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total / 1e6


@contextlib.contextmanager
def peak_memory(every: float = 1.0, so_far: float = 0.0) -> Iterator[Callable[[], float]]:
    """Samples `memory_of_tree` each `every` seconds; gives the peak up to the time of the call, at least `so_far`."""
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
