"""Work behind the main thread's: one thread, jobs in order, few of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def background_writer(limit: int) -> Iterator[Callable[..., None]]:
    """`submit(job, *arguments)` hands a job to one thread, where jobs run one after another, and waits while `limit` of
    them aren't done: what they hold is bounded.

    The first exception of a job is raised by the next `submit`, or at the end, and no later job runs. After an exception
    of the caller those that were handed over are still done: a commit among them is not lost. When the context is left, none
    is running.
    """
    pending: deque[Future] = deque()
    failed: list[BaseException] = []

    def run(job: Callable[..., Any], arguments: tuple) -> None:
        if failed:
            return
        try:
            job(*arguments)
        except BaseException as error:
            failed.append(error)
            raise

    def submit(job: Callable[..., Any], *arguments: Any) -> None:
        while pending and (len(pending) >= limit or pending[0].done()):
            pending.popleft().result()
        pending.append(pool.submit(run, job, arguments))

    with ThreadPoolExecutor(1, thread_name_prefix="behind") as pool:  # which waits for the jobs that it has
        yield submit
        while pending:
            pending.popleft().result()
