"""Jobs in threads side by side. What the unfinished ones hold in memory is bounded in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from cache.buffers import Run


@contextmanager
def bounded_pool(threads: int, limit: int) -> Iterator[Run]:
    """Gives `run(size, job)`: it starts a job that holds `size` bytes, and returns a function that waits for its result.

    `run` waits until the unfinished jobs hold at most `limit` bytes with the new one; a larger job runs alone. A thread is
    started only for a job that finds none idle, up to `threads`. The first error of a job is raised by the function that waits
    for it, and by each later `run`; no later job runs. No job runs any more when the context ends.
    """
    held, change, failed = 0, threading.Condition(), []

    def finish(size: int, job: Callable[[], Any]) -> Any:
        nonlocal held
        try:
            if failed:
                raise failed[0]
            return job()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            with change:
                held -= size
                change.notify_all()

    def run(size: int, job: Callable[[], Any]) -> Callable[[], Any]:
        nonlocal held
        with change:
            change.wait_for(lambda: held == 0 or held + size <= limit)
            if failed:
                raise failed[0]
            held += size
        return pool.submit(finish, size, job).result

    with ThreadPoolExecutor(threads, thread_name_prefix="pool") as pool:
        yield run
