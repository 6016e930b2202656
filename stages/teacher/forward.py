"""Start a forward of the teacher now and wait for its output later: decoding, forwards and writing overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stages.runtime.device_copy import copier
from stages.teacher.codes import FINITE, Encode, target_encoder
from stages.teacher.teacher import Teacher, uncompiled

FORWARDS_ON_CPU = (
    2  # at the same time, each with its share of the cores: one works while the other's threads synchronise
)


@dataclass(frozen=True)
class TeacherOutput:
    """What the cache stores of one forward.

    `stored`: arrays by name, as `ShardWriter.write` takes them. `finite`: bool [B], the rows whose targets are finite.
    `seconds`: spent in forwards alone; no second counts twice.
    """

    stored: dict[str, np.ndarray]
    finite: np.ndarray
    seconds: float


AsyncForward = Callable[[torch.Tensor, Sequence[str]], Callable[[], TeacherOutput]]


@contextmanager
def async_forward(teacher: Teacher, settings: Mapping[str, Mapping[str, Any]]) -> Iterator[AsyncForward]:
    """Yields `forward(clips, targets)`: it starts a forward over uint8 [B,T,3,S,S] and returns `wait`.

    The targets are encoded on the teacher's device. `settings`: the identity's settings of the targets.

    `wait()` blocks until the forward is done and returns its TeacherOutput. Call the `wait`s in the order of their
    forwards, and all of them in one thread. This thread may be another one than the thread that calls `forward`.
    """
    encode = target_encoder(settings, teacher.constants or {}, teacher.device)
    if teacher.device.type == "cuda":
        yield _on_gpu(teacher, encode)
        return
    # In a process that was forked, torch makes a pool of threads anew at its first use, and two threads must not do it at once.
    torch.set_num_threads(torch.get_num_threads())
    compiled = teacher.model is not uncompiled(teacher.model)  # the first forward compiles: no other may run beside it
    with ThreadPoolExecutor(1 if compiled else FORWARDS_ON_CPU, thread_name_prefix="teacher") as pool:
        try:
            yield _on_cpu(teacher, encode, pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _on_cpu(teacher: Teacher, encode: Encode, pool: ThreadPoolExecutor) -> AsyncForward:
    last_end = 0.0  # of the forwards counted so far: forwards overlap, their common seconds count once

    def timed_run(clips: torch.Tensor, targets: Sequence[str]) -> tuple[dict[str, np.ndarray], float, float]:
        start = time.perf_counter()
        answer = teacher.forward(clips, targets)
        end = time.perf_counter()
        return {name: values.numpy() for name, values in encode(answer).items()}, start, end

    def forward(clips: torch.Tensor, targets: Sequence[str]) -> Callable[[], TeacherOutput]:
        future = pool.submit(timed_run, clips, targets)

        def wait() -> TeacherOutput:
            nonlocal last_end
            arrays, start, end = future.result()
            seconds, last_end = max(0.0, end - max(start, last_end)), max(end, last_end)
            return TeacherOutput(arrays, arrays.pop(FINITE), seconds)

        return wait

    return forward


def _on_gpu(teacher: Teacher, encode: Encode) -> AsyncForward:
    """Copies overlap with forwards: pinned clips go to the GPU during an earlier forward, arrays come back during a later one.

    Only `wait` blocks, until the copy of its own output is done.
    """
    main = torch.cuda.current_stream(teacher.device)
    copy, to_cpu = copier(teacher.device), torch.cuda.Stream(teacher.device)

    def forward(clips: torch.Tensor, targets: Sequence[str]) -> Callable[[], TeacherOutput]:
        start, end, encoded, copied = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        on_device = copy(clips)
        start.record(main)
        answer = teacher.forward(on_device, targets)
        end.record(main)
        arrays = encode(answer)
        encoded.record(main)
        to_cpu.wait_event(encoded)
        with torch.cuda.stream(to_cpu):
            pinned = {name: torch.empty_like(value, device="cpu", pin_memory=True) for name, value in arrays.items()}
            for name, value in arrays.items():
                pinned[name].copy_(value, non_blocking=True)
                value.record_stream(to_cpu)
            copied.record(to_cpu)

        def wait() -> TeacherOutput:
            copied.synchronize()
            stored = {name: value.numpy() for name, value in pinned.items()}
            return TeacherOutput(stored, stored.pop(FINITE), start.elapsed_time(end) / 1e3)

        return wait

    return forward
