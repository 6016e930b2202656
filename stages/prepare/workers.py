"""Worker processes that run many tasks in order, with few of them in flight, and survive a task that crashes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import TypeVar

from cache.errors import ReskdError

T = TypeVar("T")
Task = Callable[[], T]  # picklable: a partial of a module's function
TASKS_IN_FLIGHT = 4  # per worker


class Workers:
    """A pool of `count` processes. They are spawned, because a fork after threads may hang. 0: this process works."""

    def __init__(self, count: int):
        self.count = count
        self.pool: ProcessPoolExecutor | None = None
        self.retry_pool: ProcessPoolExecutor | None = None  # one process, which runs one task at a time

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        for pool in (self.pool, self.retry_pool):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def map(self, tasks: Iterable[Task[T]], crashed: Callable[[str], T] | None = None) -> Iterator[T]:
        """The results in the order of the tasks. An exception of a task is raised here.

        A decoder may crash its process on a damaged file, and then the whole pool dies. The tasks in flight are then run
        again, one at a time. The result of a task that crashes again is `crashed(reason)`; without `crashed`, ReskdError
        is raised.
        """
        if self.count == 0:
            yield from (task() for task in tasks)
            return
        tasks, pending = iter(tasks), deque()
        for task in islice(tasks, TASKS_IN_FLIGHT * self.count):
            pending.append((task, *self._submit(task)))
        while pending:
            task, pool, future = pending.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                if self.pool is pool:
                    self.pool = None
                result = self._run_alone(task, crashed)
            for next_task in islice(tasks, 1):
                pending.append((next_task, *self._submit(next_task)))
            yield result

    def _submit(self, task: Task[T]) -> tuple[ProcessPoolExecutor, Future[T]]:
        if self.pool is None:
            self.pool = _start_pool(self.count)
        try:
            return self.pool, self.pool.submit(task)
        except BrokenProcessPool:  # the pool has died, but no result has shown it yet
            self.pool = _start_pool(self.count)
            return self.pool, self.pool.submit(task)

    def _run_alone(self, task: Task[T], crashed: Callable[[str], T] | None) -> T:
        if self.retry_pool is None:
            self.retry_pool = _start_pool(1)
        try:
            return self.retry_pool.submit(task).result()
        except BrokenProcessPool as error:
            self.retry_pool = None
            if crashed is None:
                raise ReskdError(f"a worker process died twice in {task}. Is there enough memory?") from error
            return crashed("crashes the process that decodes it")


def _start_pool(count: int) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_initialise_worker)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise ReskdError("worker processes can't be started. Call `prepare` under `if __name__ == '__main__':`, or with "
                         "workers=0") from error  # fmt: skip
    return pool


def _initialise_worker() -> None:
    """A worker ignores Ctrl-C, which the parent handles, and ends when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
