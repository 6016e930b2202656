"""The order of the tasks: which worker does what."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from stages.predict.tasks import Answer, Task


class Schedule:
    """Tasks for `workers` processes, of which the worker n % workers does task n.

    Each video gets a look. If its windows are too many for one answer, the same worker makes them, one task after the
    other, so that it decodes the video once. These tasks go before looks at further videos.
    """

    def __init__(self, videos: int, workers: int, at_once: int):
        self.videos, self.workers, self.at_once = videos, max(1, workers), at_once
        self.looked: dict[int, int] = {}  # video -> worker, until its look is answered
        self.failed: set[int] = set()
        self.rest: list[deque[Iterator[Task]]] = [deque() for _ in range(self.workers)]

    def tasks(self) -> Iterator[Task | None]:
        """The tasks in order. None where a worker has to wait until a look is answered."""
        number, video = 0, 0
        while True:
            worker = number % self.workers
            task = self._next_of(worker)
            if task is None and video < self.videos:
                task = Task(video)
                self.looked[video] = worker
                video += 1
            if task is None and not self.looked and not any(self.rest):
                return
            yield task
            number += 1

    def answered(self, answer: Answer) -> None:
        """Take note of an answer. After a look, the windows of a long video become tasks of the same worker."""
        if answer.error is not None:
            self.failed.add(answer.video)
        if answer.video not in self.looked:
            return
        worker = self.looked.pop(answer.video)
        if answer.facts is not None and answer.clips is None:
            starts = range(0, answer.facts.windows, self.at_once)
            self.rest[worker].append(Task(answer.video, start) for start in starts)

    def _next_of(self, worker: int) -> Task | None:
        while self.rest[worker]:
            task = next(self.rest[worker][0], None)
            if task is not None and task.video not in self.failed:
                return task
            self.rest[worker].popleft()
        return None
