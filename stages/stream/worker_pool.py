"""Decoding processes that make batches ahead, in order. A clip that hangs, crashes or eats memory doesn't stop them.

torch's DataLoader isn't used. Its processes share one pipe and one lock, which stay blocked for ever if a process is
killed at the wrong moment. A batch that can't be sent, because /dev/shm is full, is dropped while the parent waits for
it. And the death of a process raises an error in the middle of whatever the parent does. Here each process has a pipe of
its own, a batch travels in a file in memory (memory_file.py), and a process that ends is replaced: the new one makes the
batches that the old one still had to make, so that their order and their content don't change.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, MutableMapping
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from cache.errors import ReskdError
from stages.runtime.limits import RETRY_FACTOR, why_ended
from stages.runtime.memory import memory_of_rank
from stages.runtime.terminal import console
from stages.stream.config import LoaderConfig
from stages.stream.worker_process import ENDED, Begin, Bug, Worker, pinned, start_worker

POLL = 1.0  # seconds between two looks at the workers while the parent waits
DEATH = 60.0  # seconds that a killed process may take to end: it gives its memory back, on a busy machine
GRACE = 5.0  # seconds after a limit, until the parent ends a worker that didn't end itself, such as a stopped one

# The clips that were given up, with reasons. They are remembered as long as their data set is open.
_given_up: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()


def make_batches(
    begin: Begin, items: Iterable[Any], workers: int, loader: LoaderConfig, *, data: Any, pin: bool = False
) -> Iterator[Any]:
    """The batches of the items, in order, made by `workers` processes; by this one, without limits, if there are none.

    A worker makes `loader.prefetch` batches ahead. A clip that overruns `loader.limits` or ends its process is tried once
    more, in a new process with ten times the limits; then it is given up: `clip_at_work` raises DecodeError for it.
    `data`: the data set whose clips these are. `pin`: into pinned memory.

    Raises ReskdError if a process ends twice at a batch outside of any clip, if a process doesn't answer and can't be
    ended, and before the second batch if the memory can't hold what the workers make ahead.
    """
    if workers:
        yield from _Pool(begin, items, workers, loader, data, pin).batches()
        return
    fetch = begin(0, 1)
    for item in items:
        batch = fetch(item)
        yield pinned(batch) if pin else batch


class _Pool:
    """The workers of one `make_batches`. Batch n is made by worker n % `count`."""

    def __init__(self, begin: Begin, items: Iterable[Any], count: int, loader: LoaderConfig, data: Any, pin: bool):
        self.begin, self.tasks, self.count, self.loader, self.pin = begin, enumerate(items), count, loader, pin
        self.answers: SimpleQueue = SimpleQueue()  # of all workers, replaced ones too
        self.workers: list[Worker] = []
        self.given_up: MutableMapping[str, str] = _given_up.setdefault(data, {})
        self.retried: dict[str, int] = {}  # clip -> the batch for which it is, or was, tried again
        self.ended_at: dict[int, int] = {}  # batch -> how many workers ended at it outside of any clip
        self.sent = 0  # batches that workers have or had to make
        self.checked = False  # whether the memory was compared with the need

    def batches(self) -> Iterator[Any]:
        ready: dict[int, Any] = {}
        try:
            self.workers = [self._start(number, number) for number in range(self.count)]
            self._send(self.count * self.loader.prefetch)
            number = 0
            while number < self.sent:
                while number not in ready:
                    ready |= self._wait()
                batch = ready.pop(number)
                if isinstance(batch, Bug):
                    raise RuntimeError(f"in a decoding process:\n{batch.text}")
                self._send(1)
                yield batch
                del batch
                number += 1
        finally:
            for worker in self.workers:
                worker.end()
            for worker in self.workers:
                worker.process.join(DEATH)

    def _start(self, number: int, first: int) -> Worker:
        return start_worker(self.begin, number, first, self.count, self.loader.limits, self.answers, self.pin)

    def _send(self, count: int) -> None:
        """Give the next tasks to the workers whose turn it is."""
        for task in islice(self.tasks, count):
            self.workers[task[0] % self.count].send(task, self._suspects())
            self.sent += 1

    def _suspects(self) -> dict[str, str | None]:
        return {**dict.fromkeys(self.retried), **self.given_up}

    def _wait(self) -> dict[int, Any]:
        """Wait a while for an answer. Returns the batch with its number; nothing if none came or a worker ended."""
        try:
            worker, answer, size = self.answers.get(timeout=POLL)
        except Empty:
            for worker in list(self.workers):
                self._look_at(worker)
            return {}
        if worker is not self.workers[worker.number]:  # it was replaced
            return {}
        if answer is ENDED:
            self._replace(worker)
            return {}
        self._check_memory(size)
        worker.since = time.monotonic()
        return {worker.tasks.popleft()[0]: answer}

    def _look_at(self, worker: Worker) -> None:
        """End a worker that doesn't move, and replace one that ended without a word."""
        limits, clip = self.loader.limits, worker.note.clip()
        factor = RETRY_FACTOR if clip in self.retried or not clip else 1
        if not worker.process.is_alive():
            self.answers.put((worker, ENDED, 0))  # after all that it has sent; a second `ENDED` is passed over
        elif worker.seconds_of_silence() > limits.seconds * factor + GRACE:
            worker.stopped = True
            worker.process.kill()
            worker.process.join(DEATH)
            if worker.process.is_alive():
                raise ReskdError(f"a decoding process (pid {worker.process.pid}) doesn't answer and can't be ended, at the "
                                 f"clip {clip or '(none)'}: its disk or network may hang. Mend that, and run again")  # fmt: skip

    def _replace(self, worker: Worker) -> None:
        """Start a new worker for the tasks of one that has ended, and remember what it ended at."""
        worker.process.join(DEATH)
        worker.end()
        worker.process.join(DEATH)
        if worker.tasks:
            self._blame(worker.tasks[0][0], worker.note.clip(), worker)
        first = worker.tasks[0][0] if worker.tasks else self._next_task_of(worker.number)
        self.workers[worker.number] = new = self._start(worker.number, first)
        for task in worker.tasks:
            new.send(task, self._suspects())

    def _next_task_of(self, number: int) -> int:
        return self.sent + (number - self.sent) % self.count

    def _blame(self, batch: int, clip: str, worker: Worker) -> None:
        """Remember what a worker ended at: a clip, or, if `clip` is empty, the batch."""
        limits = self.loader.limits
        factor = RETRY_FACTOR if clip in self.retried or not clip else 1
        seconds, size = limits.seconds * factor, limits.bytes * factor
        reason = why_ended(worker.process.exitcode, seconds, size)
        if worker.stopped:
            reason = f"doesn't answer for {seconds:g} s"
        if not clip:
            self.ended_at[batch] = self.ended_at.get(batch, 0) + 1
            if self.ended_at[batch] > 1:
                raise ReskdError("two decoding processes failed one after another at one batch, outside of any clip: the last "
                                 f"one {reason}. Is there enough memory? Lower loader.workers or loader.prefetch")  # fmt: skip
        elif self.retried.get(clip) == batch:
            self.given_up[clip] = f"{reason} (loader.limits)"
        else:
            self.retried[clip] = batch
            if worker.process.exitcode == -signal.SIGTERM:  # sent to all processes of the command, which will end, too
                return
            console.print(f"[yellow]again[/] {clip}: {reason}; it is tried once more, with {RETRY_FACTOR} times the limits",
                          highlight=False)  # fmt: skip

    def _check_memory(self, size: int) -> None:
        """Raise ReskdError if the memory can't hold the batches that workers make ahead. `size`: of the first batch."""
        if self.checked:
            return
        self.checked = True
        ahead = self.count * self.loader.prefetch
        needed, free = ahead * size, memory_of_rank()
        if needed > free:
            raise ReskdError(
                f"decoding needs {needed / 1e9:.1f} GB of memory for the batches that it makes ahead ({self.count} workers × "
                f"{self.loader.prefetch} batches × {size / 1e6:.0f} MB), and {free / 1e9:.1f} GB a rank are free: lower "
                "loader.workers, loader.prefetch or batch_size"
            )
