"""Builds the networks of `bench deploy` in each runtime, and measures calls on one clip."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stages.bench.clocks import core_seconds
from stages.export.check import onnx_runner
from stages.export.program import onnx_bytes, to_program
from stages.export.quantise import quantise
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import VideoModel
from stages.runtime.distributed import cores

SHORTEST = 0.5  # seconds of one measurement: small nets get several clips in it
EAGER, FLOAT, INT8 = "torch", "onnxruntime", "onnxruntime int8"
Runtime = Literal["torch", "onnxruntime", "onnxruntime int8"]
CORES = ("one core", "all cores")


class Net(NamedTuple):
    """A network of `Setup.nets` at a size, px."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} at {self.size}"


class Cell(NamedTuple):
    net: Net
    runtime: Runtime


Calls = dict[tuple[Cell, str], Callable[[], object]]  # for each cell, on one core and on all: a call on one clip
Times = dict[tuple[Cell, str], list[float]]  # milliseconds a clip, of each round


def build_net(config: ModelConfig) -> VideoModel:
    torch.manual_seed(0)
    return build_model(config).eval().requires_grad_(False)


def _noise(model: VideoModel, size: int, clips: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (clips, model.num_frames, 3, size, size), dtype=torch.uint8, generator=generator)


def cell_calls(cell: Cell, models: Mapping[str, VideoModel], folder: Path) -> Calls:
    """The calls of a cell. Writes its ONNX file into `folder`."""
    model, size = models[cell.net.name], cell.net.size
    clip = _noise(model, size)
    if cell.runtime == EAGER:
        return {
            (cell, on): partial(_eager, model, clip, threads) for on, threads in zip(CORES, _threads(), strict=True)
        }
    path = folder / f"{cell.net}.onnx"
    if not path.exists():
        path.write_bytes(onnx_bytes(to_program(model, size, path), {}, path))
    if cell.runtime == INT8:
        path, floats = folder / f"{cell.net} int8.onnx", path
        path.write_bytes(quantise(floats, [_noise(model, size, 2)], {}))
    return {(cell, on): partial(onnx_runner(path, threads), clip)
            for on, threads in zip(CORES, _threads(), strict=True)}  # fmt: skip


def _threads() -> tuple[int, int]:
    return 1, cores()


def _eager(model: VideoModel, clip: Tensor, threads: int) -> Tensor:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return model(clip).logits


@contextmanager
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_calls(calls: Calls, runs: int) -> Times:
    """Measure all calls in each of `runs` rounds. A first call of each warms up and says how many clips make SHORTEST."""
    counts, times = {}, {call: [] for call in calls}
    for call, work in calls.items():
        work()
        counts[call] = max(1, round(SHORTEST / _seconds(work, call[1], 1)))
    for _ in range(runs):
        for call, work in calls.items():
            times[call].append(1e3 * _seconds(work, call[1], counts[call]))
    return times


def _seconds(work: Callable[[], object], on: str, count: int) -> float:
    """The seconds of a call, the mean of `count`."""
    clock, share = (time.process_time, 1) if on == CORES[0] else (core_seconds, cores())
    began = clock()
    for _ in range(count):
        work()
    return max(clock() - began, 1e-3) / share / count  # core seconds count in hundredths
