"""Limits of time and memory for one piece of work, such as the decoding of a clip, in a worker process.

The kernel keeps them, even inside C code that never comes back to Python, and they cost some microseconds. Time: a timer,
whose SIGALRM ends the process. Memory: RLIMIT_DATA, set to the private memory that the process has plus the limit; an
allocation beyond it fails, and that ends the process, too. (RLIMIT_AS would also count the addresses that torch and CUDA
reserve and never use. To look at the process's size from outside would come too late for one large allocation.)
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import resource
except ImportError:  # not a Unix
    resource = None

RETRY_FACTOR = 10  # a piece of work that overran its limits is tried once more, with limits so many times as large
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
OUT_OF_MEMORY = 86  # the exit status of a process that overran its limit of memory


@contextmanager
def limited(seconds: float, size: int) -> Iterator[None]:
    """End this process if the work in the context takes more than `seconds`, or allocates more than `size` bytes.

    For processes that do nothing but such work. `why_ended` turns their exit status into words."""
    old = _limit_memory(size)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if old and _from_lack_of_memory(error):
            os._exit(OUT_OF_MEMORY)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if old:
            resource.setrlimit(resource.RLIMIT_DATA, old)


def why_ended(status: int, seconds: float, size: int) -> str:
    """What a process did that ended with this exit status; negative: a signal. `seconds`, `size`: its limits."""
    if status == -signal.SIGALRM:
        return f"takes more than {seconds:g} s"
    if status == OUT_OF_MEMORY:
        return f"needs more than {size / 1e9:.3g} GB of memory"
    if status < 0:
        return f"ends the process that decodes it ({signal.Signals(-status).name})"
    return f"ends the process that decodes it (exit status {status})"


def _limit_memory(size: int) -> tuple[int, int] | None:
    """Set RLIMIT_DATA to today's private memory plus `size` bytes; returns what it was. None: there is no such limit."""
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:  # only Linux has it
        return None
    try:
        private = int(os.read(file, 200).split()[5]) * PAGE
    finally:
        os.close(file)
    soft, hard = old = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = private + size if soft == resource.RLIM_INFINITY else min(soft, private + size)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return old


def _from_lack_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation that failed is among the causes of an error."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False
