"""Worker processes that run many tasks in order, with few of them in flight, and survive a task that crashes or hangs."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from typing import TypeVar

from cache.errors import ReskdError
from stages.runtime.fresh_process import fresh_context
from stages.runtime.interrupt import sigint_waits
from stages.runtime.limits import OUT_OF_MEMORY, RETRY_FACTOR, limited

T = TypeVar("T")
Task = Callable[[], T]  # picklable: a partial of a module's function
TASKS_IN_FLIGHT = 4  # per worker


@dataclass(frozen=True)
class VideoLimits:
    """What the work on one video may take in a worker. No good video comes near it. A process that overruns ends."""

    seconds: float = 60.0
    seconds_per_mb: float = 30.0  # a long video of still pictures has half an hour in 20 MB
    memory: int = 4 * 2**30  # bytes

    def times(self, factor: int) -> "VideoLimits":
        return VideoLimits(self.seconds * factor, self.seconds_per_mb * factor, self.memory * factor)


_limits: VideoLimits | None = None  # of this process; None: it is no worker, and has no limits


@contextmanager
def video_limits(size: int) -> Iterator[None]:
    """The work on one video of `size` bytes."""
    if _limits is None:
        yield
        return
    with limited(_limits.seconds + _limits.seconds_per_mb * size / 1e6, _limits.memory):
        yield


class Workers:
    """A pool of `count` fresh processes: a fork of one with threads may hang. 0: this process works."""

    def __init__(self, count: int, limits: VideoLimits = VideoLimits()):
        self.count, self.limits = count, limits
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

        A decoder may crash its process on a damaged file, or overrun `video_limits`, and then the whole pool dies. The
        tasks in flight are then run again, one at a time, with larger limits. The result of a task that fails again is
        `crashed(reason)`; without `crashed`, ReskdError is raised.
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
            self.pool = _start_pool(self.count, self.limits)
        try:
            return self.pool, _submit_to(self.pool, task)
        except BrokenProcessPool:  # the pool has died, but no result has shown it yet
            self.pool = _start_pool(self.count, self.limits)
            return self.pool, _submit_to(self.pool, task)

    def _run_alone(self, task: Task[T], crashed: Callable[[str], T] | None) -> T:
        if self.retry_pool is None:
            self.retry_pool = _start_pool(1, self.limits.times(RETRY_FACTOR))
        (process,) = self.retry_pool._processes.values()
        try:
            return self.retry_pool.submit(task).result()
        except BrokenProcessPool as error:
            self.retry_pool.shutdown()
            self.retry_pool = None
            if crashed is None:
                raise ReskdError(f"a worker process died twice in {task}. Is there enough memory?") from error
            reasons = {-signal.SIGALRM: "takes too long to decode", OUT_OF_MEMORY: "needs too much memory to decode"}
            return crashed(reasons.get(process.exitcode, "crashes the process that decodes it"))


def _submit_to(pool: ProcessPoolExecutor, task: Task[T]) -> Future[T]:
    with sigint_waits():  # the first tasks each start a process
        return pool.submit(task)


def _start_pool(count: int, limits: VideoLimits) -> ProcessPoolExecutor:
    """A pool with a process that works. It is tried twice: the first process may be killed by chance at its start."""
    failure = None
    for _ in range(2):
        context = fresh_context("stages.prepare.probe_videos")
        pool = ProcessPoolExecutor(count, context, initializer=_initialise_worker, initargs=(limits,))
        try:
            _submit_to(pool, os.getpid).result()
            return pool
        except BrokenProcessPool as error:
            failure = error
    raise ReskdError("worker processes can't be started. Call `prepare` under `if __name__ == '__main__':`, or with "
                     "workers=0") from failure  # fmt: skip


def _initialise_worker(limits: VideoLimits) -> None:
    """A worker ignores Ctrl-C, which the parent handles, and ends when its parent is killed."""
    global _limits
    _limits = limits
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
