"""Jobs in a background thread: one after another, in order, a limited number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def background_writer(limit: int) -> Iterator[Callable[..., None]]:
    """Gives `submit(job, *arguments)`, which hands a job to one background thread. The thread runs jobs one after another.

    `submit` waits while `limit` jobs aren't done, so the memory that jobs hold is bounded. The first exception of a job is
    raised by a later `submit` or at the end, and no later job runs. If the caller raises, the submitted jobs are still
    done, so that no commit is lost. No job runs any more when the context ends.
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

    with ThreadPoolExecutor(1, thread_name_prefix="background") as pool:  # its end waits for the submitted jobs
        yield submit
        while pending:
            pending.popleft().result()
