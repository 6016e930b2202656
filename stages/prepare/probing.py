"""Many clips probed by worker processes, in order, with few of them in flight."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

from cache.errors import ReskdError
from stages.video.decode import DecodeError, VideoInfo, probe

T = TypeVar("T")
Task = Callable[[], T]  # picklable: a partial of a module's function
AHEAD = 4  # tasks in flight per worker


@dataclass(frozen=True, slots=True)
class Probe:
    """What a video turned out to be: `info`, or the reason why it can't be read."""

    sha256: str
    info: VideoInfo | None
    error: str | None


def probe_task(path: Path, offset: int = 0, size: int | None = None) -> Task[Probe]:
    """A task that probes a file, or the part of it that is a tar's member."""
    return partial(_probe, path, offset, size)


def hash_task(path: Path) -> Task[str]:
    """A task that gives the sha256 of a file."""
    return partial(_hash, path)


class Prober:
    """A pool of `workers` processes (spawned: a fork after threads may hang); 0 does everything in this process."""

    def __init__(self, workers: int):
        self.workers, self.pool, self.single = workers, None, None

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *_) -> None:
        for pool in (self.pool, self.single):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def map(self, tasks: Iterable[Task[T]], crashed: Callable[[str], T] | None = None) -> Iterator[T]:
        """The results in the order of the tasks. A task's own exception is raised here.

        A decoder may crash its process on a damaged file, and the pool dies with it. Then the tasks in flight are run
        again, each alone; of the one that crashes again `crashed(reason)` is the result.
        """
        if self.workers == 0:
            yield from (task() for task in tasks)
            return
        tasks, pending = iter(tasks), deque()
        for task in islice(tasks, AHEAD * self.workers):
            pending.append((task, *self._submit(task)))
        while pending:
            task, pool, future = pending.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                if self.pool is pool:
                    self.pool = None
                result = self._alone(task, crashed)
            for following in islice(tasks, 1):
                pending.append((following, *self._submit(following)))
            yield result

    def _submit(self, task: Task[T]) -> tuple[ProcessPoolExecutor, Future[T]]:
        if self.pool is None:
            self.pool = _start(self.workers)
        try:
            return self.pool, self.pool.submit(task)
        except BrokenProcessPool:  # not yet noticed by its results
            self.pool = _start(self.workers)
            return self.pool, self.pool.submit(task)

    def _alone(self, task: Task[T], crashed: Callable[[str], T] | None) -> T:
        if self.single is None:
            self.single = _start(1)
        try:
            return self.single.submit(task).result()
        except BrokenProcessPool as error:
            self.single = None
            if crashed is None:
                raise ReskdError(f"a worker process died, twice, in {task}. Is there enough memory?") from error
            return crashed("crashes the process that decodes it")


def crashed_probe(reason: str) -> Probe:
    return Probe("", None, reason)


def _start(workers: int) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise ReskdError("worker processes can't be started. Call `prepare` under `if __name__ == '__main__':` or "
                         "workers=0") from error  # fmt: skip
    return pool


def _begin() -> None:
    """In a worker: Ctrl-C is the parent's business, and a parent that was killed leaves no worker behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def _probe(path: Path, offset: int, size: int | None) -> Probe:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(-1 if size is None else size)
    except OSError as error:
        return Probe("", None, f"can't be read: {error.strerror}")
    return probe_bytes(data)


def probe_bytes(data: bytes) -> Probe:
    """What an encoded video turns out to be."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        if not data:
            raise DecodeError("empty file (0 bytes)")
        return Probe(digest, probe(data), None)
    except DecodeError as error:
        return Probe(digest, None, str(error))
    except Exception as error:  # whatever a decoder makes of garbage, one clip doesn't end a run of a million
        return Probe(digest, None, f"{type(error).__name__}: {error}")


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
