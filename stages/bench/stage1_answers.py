"""Stage one around its teacher: a stand-in answers at once with maps that are prepared in memory.

So everything but the forward is measured here, without an accelerator: to encode and write, and to decode and render. From
their core seconds follows how many cores keep a rank of a GPU busy.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.manifest import bytes_of_clip_view
from stages.bench.clocks import cpu_seconds
from stages.bench.figures import Figure, at_least, at_most, measured, profiled
from stages.bench.stage1_ready import Halves, ready_halves
from stages.bench.stage1_runs import TINY, Setup, make_dataset, measure_rate, stage_one_config
from stages.bench.videos import Kind, make_videos
from stages.runtime.distributed import cores, join_ranks

THREADS = Path("/proc/self/task")
SMALLEST = Kind(64, 48, 6)  # videos of which no frame is used
FASTEST = {"ResNet-50": 1000, "ResNet-152": 250}  # clip·views of 224 px that a rank of an H100 forwards in a second


@dataclass(frozen=True)
class Answers:
    """`views` views of `clips` clips at `size` px, and the shape of their maps. `written`: clips of which maps are only written.

    A block of 64 clips is compressed when it is full. In a shard of one block a view, all would be at its end. With few clips
    the start of the decoding processes, half a second, would be a large part of the run.
    """

    clips: int = 128
    views: int = 8
    batch_size: int = 16
    maps: tuple[int, int, int, int] = (8, 7, 7, 2048)
    size: int = 224
    runs: int = 3
    written: int = 256


def run_answers(folder: Path, videos: Path, setup: Answers, trace: Path | None) -> list[Figure]:
    """Both halves of stage one, stage one with a teacher that costs nothing, and the cores that a rank of a GPU needs."""
    torch.set_num_threads(1)  # one thread encodes a map; several maps are encoded side by side
    data, maps = make_dataset(folder / "answers", videos, setup.clips), setup.clips * setup.views
    small = make_dataset(folder / "written", make_videos(folder / "small", SMALLEST, 8, 0.5), setup.written)
    sizes = Setup(size=setup.size, views=setup.views, batch_size=setup.batch_size)
    config, to_write = (
        stage_one_config(folder, d, TINY, setup.size, sizes, f"{d.path.parent.name}.zarr") for d in (data, small)
    )
    with join_ranks() as ranks:
        halves, gpu = ready_halves(config, data, setup.maps, ranks.device), ranks.device.type == "cuda"
        written, of_all = ready_halves(to_write, small, setup.maps, ranks.device), setup.written * setup.views
        on_host, handed_in = (
            [1e3 * s / of_all for s in cpu_seconds(lambda codes=codes: written.write(codes), setup.runs)]
            for codes in (False, True)
        )
        scaling = _scaling(written, setup.runs)
        decoding = [1e3 * s / setup.clips for s in cpu_seconds(halves.decode, setup.runs)]
        rates = [measure_rate(lambda: halves.whole(ranks), maps, gpu) for _ in range(setup.runs)]
        with profiled(trace):
            if trace is not None:
                halves.whole(ranks)
    decode = float(np.median(decoding)) / setup.views
    write, host = float(np.median(handed_in)), float(np.median(handed_in if gpu else on_host))
    bound = 1e3 * cores() / (host + decode)
    name = "×".join(map(str, setup.maps))
    return [
        at_most(f"encode and write a map of {name} in int4, its numbers on the host", on_host, "ms of a core", 4),
        at_most("the same, codes handed in as from a device", handed_in, "ms of a core", 2),
        *scaling,
        measured(f"decode and render a clip in {setup.views} views at {setup.size}", decoding, "ms of a core"),
        at_most("bytes that cross to the host ÷ bytes stored, before zstd", [_crossing(halves)], "", 1.01),
        measured("stage one, a teacher that costs nothing", rates, "clip·views/s"),
        at_least("the same ÷ the bound of its two halves", [rate / bound for rate in rates], "", 0.9),
        *(
            Figure(f"cores for {rate} clip·views/s ({net} on an H100)", rate * (write + decode) / 1e3, "cores")
            for net, rate in FASTEST.items()
        ),
    ]


def _crossing(halves: Halves) -> float:
    """Bytes of an answer that cross to the host, for each byte that the cache's arrays have of it."""
    output, identity = halves.stored(), halves.manifest.identity
    crossing = sum(values.nbytes for values in output.stored.values()) + output.finite.nbytes
    return crossing / (len(output.finite) * (bytes_of_clip_view(identity) - bytes_of_clip_view(identity, ())))


def _scaling(halves: Halves, runs: int) -> list[Figure]:
    """Codes handed in, on two cores and on one, by the wall clock. No figure where the system has no second core to give."""
    if not THREADS.exists() or len(allowed := sorted(os.sched_getaffinity(0))) < 2:
        return []
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for count in (1, 2) * runs:
        _keep_to(allowed[:count])
        began = time.perf_counter()
        halves.write(codes=True)
        seconds[count].append(time.perf_counter() - began)
    _keep_to(allowed)
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return [at_least("the same, the rate on two cores ÷ on one", ratios, "", 1.8)]


def _keep_to(allowed: list[int]) -> None:
    """Let all threads of this process run on these cores alone; new threads do as the one that starts them."""
    for thread in THREADS.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), allowed)
