"""Asking the teacher without waiting for its answer: on a GPU its input, forwards and answers overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stages.distill.teacher import Teacher


@dataclass(frozen=True)
class Answer:
    """`targets`: float32, as `Teacher.run` gives them. `seconds`: of the forward alone."""

    targets: dict[str, np.ndarray]
    seconds: float


def ask(teacher: Teacher, clips: torch.Tensor, targets: Sequence[str]) -> Callable[[], Answer]:
    """Start a forward over uint8 [B,T,3,S,S]; the function returned waits for its answer, in whatever thread.

    On a CPU the answer is there already. On a GPU, `clips` should be pinned: they are copied while an earlier forward
    runs, the answer is copied back into pinned memory while a later one does, and only the waiting thread waits.
    """
    if teacher.device.type != "cuda":
        began = time.perf_counter()
        found = teacher.forward(clips, targets)
        answer = Answer({name: value.numpy() for name, value in found.items()}, time.perf_counter() - began)
        return lambda: answer
    main, (up, down) = torch.cuda.current_stream(), teacher.copying
    began, ended, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    with torch.cuda.stream(up):
        there = clips.to(teacher.device, non_blocking=True)
    main.wait_stream(up)
    there.record_stream(main)  # else its memory is another batch's as soon as it isn't `up` that uses it
    began.record()
    found = teacher.forward(there, targets)
    ended.record()
    down.wait_event(ended)
    with torch.cuda.stream(down):
        here = {name: torch.empty_like(value, device="cpu", pin_memory=True) for name, value in found.items()}
        for name, value in found.items():
            here[name].copy_(value, non_blocking=True)
            value.record_stream(down)
        copied.record()

    def answer() -> Answer:
        copied.synchronize()
        return Answer({name: value.numpy() for name, value in here.items()}, began.elapsed_time(ended) / 1e3)

    return answer
