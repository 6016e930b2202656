"""Asking the teacher without waiting for its answer: input, forwards and answers overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from stages.teacher.teacher import Teacher, plain

AT_ONCE = (
    2  # forwards on a CPU, each with its share of the cores: while one's threads wait for one another, others work
)


@dataclass(frozen=True)
class TeacherOutput:
    """`targets`: float32, as `Teacher.run` gives them. `seconds`: of forwards alone, none counted twice."""

    targets: dict[str, np.ndarray]
    seconds: float


Forward = Callable[[torch.Tensor, Sequence[str]], Callable[[], TeacherOutput]]


@contextmanager
def teacher_forwards(teacher: Teacher) -> Iterator[Forward]:
    """`ask(clips, targets)` starts a forward over uint8 [B,T,3,S,S]; what it returns waits for the answer. Answers are to be
    waited for in their order, in one thread, which may be another one than asks."""
    if teacher.device.type == "cuda":
        yield _on_gpu(teacher)
        return
    compiled = teacher.model is not plain(teacher.model)  # whose first forward compiles, better alone
    with ThreadPoolExecutor(1 if compiled else AT_ONCE, thread_name_prefix="teacher") as pool:
        try:
            yield _on_cpu(teacher, pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _on_cpu(teacher: Teacher, pool: ThreadPoolExecutor) -> Forward:
    until = 0.0  # when the last answer was there: forwards run beside each other

    def timed(clips: torch.Tensor, targets: Sequence[str]) -> tuple[dict[str, np.ndarray], float, float]:
        began = time.perf_counter()
        return teacher.run(clips, targets), began, time.perf_counter()

    def ask(clips: torch.Tensor, targets: Sequence[str]) -> Callable[[], TeacherOutput]:
        future = pool.submit(timed, clips, targets)

        def answer() -> TeacherOutput:
            nonlocal until
            found, began, ended = future.result()
            seconds, until = max(0.0, ended - max(began, until)), max(ended, until)
            return TeacherOutput(found, seconds)

        return answer

    return ask


def _on_gpu(teacher: Teacher) -> Forward:
    """Pinned clips are copied there while an earlier forward runs, answers back into pinned memory while a later one does.

    Only who waits for an answer waits, for its event.
    """
    main = torch.cuda.current_stream(teacher.device)
    up, down = torch.cuda.Stream(teacher.device), torch.cuda.Stream(teacher.device)

    def ask(clips: torch.Tensor, targets: Sequence[str]) -> Callable[[], TeacherOutput]:
        began, ended, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.stream(up):
            on_device = clips.to(teacher.device, non_blocking=True)
        main.wait_stream(up)
        on_device.record_stream(main)  # else `up` could give its memory to a later batch
        began.record(main)
        found = teacher.forward(on_device, targets)
        ended.record(main)
        down.wait_event(ended)
        with torch.cuda.stream(down):
            pinned = {name: torch.empty_like(value, device="cpu", pin_memory=True) for name, value in found.items()}
            for name, value in found.items():
                pinned[name].copy_(value, non_blocking=True)
                value.record_stream(down)
            copied.record(down)

        def answer() -> TeacherOutput:
            copied.synchronize()
            return TeacherOutput(
                {name: value.numpy() for name, value in pinned.items()}, began.elapsed_time(ended) / 1e3
            )

        return answer

    return ask
