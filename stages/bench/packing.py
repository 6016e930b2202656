"""A pack against its videos: the time of a student's input, and the bytes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cache.reader import CacheReader
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.figures import Figure, at_least, at_most, measured, profiled, show
from stages.bench.students import Bench, make_bench
from stages.bench.videos import LARGE, SMALL, Kind
from stages.runtime.distributed import join_ranks
from stages.shards.dataset import open_dataset
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.frame_source import frame_options
from stages.stream.pack_reader import open_pack

GOALS = {SMALL[0]: 20, SMALL[1]: 20, LARGE[0]: 200, LARGE[1]: 200}
STORED = 4  # views of the cache


@dataclass(frozen=True)
class Setup:
    """`clips` videos of each kind. A student's input is one view at `size` px."""

    kinds: tuple[Kind, ...] = (*SMALL, *LARGE)
    clips: int = 4
    size: int = 112
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(kinds=(*SMALL, LARGE[1]), clips=2)


def run_pack(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure packs of four stored views and of all frames, of ten-second clips. The clips are made in `folder` and kept."""
    setup, figures = QUICK if quick else FULL, []
    with join_ranks():
        for kind in setup.kinds:
            with tempfile.TemporaryDirectory() as temporary:
                bench = replace(make_bench(Path(temporary), folder, kind, setup.clips, 1, setup.seconds), views=STORED)
                with profiled(trace if kind == setup.kinds[-1] else None):
                    figures += _input(bench, kind, setup)
                figures += _bytes(bench, kind, setup)
    show("pack", figures, output)
    return figures


def _input(bench: Bench, kind: Kind, setup: Setup) -> list[Figure]:
    """The time to join, decode and render a clip of a batch, on one core."""
    data, reader = open_dataset(bench.data()), CacheReader(bench.cache(), ("logits",))
    packs, packing = {}, {}
    for frames in ("all", "crops"):
        began = time.perf_counter()
        packs[frames] = open_pack(bench.packed(frames, setup.size))
        packing[frames] = 1e3 * (time.perf_counter() - began) / setup.clips
    times, indices = {}, [(0, r, 0) for r in range(setup.clips)]
    sources = {
        "the videos": None,
        "a pack of all frames": packs["all"],
        "a pack of crops": packs["crops"],
    }
    for name, pack in sources.items():
        clips = ClipDataset(data, size=setup.size, num_classes=2, cache=reader, **frame_options(pack, LoaderConfig()))
        work = partial(clips.__getitems__, indices)
        times[name] = [1e3 * seconds / setup.clips for seconds in cpu_seconds(work, setup.runs)]
    videos, goal = times["the videos"], GOALS.get(kind, 20)
    return [
        *(measured(f"{kind}: a student's input from {name}", ms, "ms a clip") for name, ms in times.items()),
        *(at_least(f"{kind}: the videos ÷ {name}", [a / b for a, b in zip(videos, ms, strict=True)], "times", goal)
          for name, ms in times.items() if ms is not videos),
        Figure(f"{kind}: packing all frames of a clip, on all cores", packing["all"], "ms"),
        Figure(f"{kind}: packing the crops of a clip's {STORED} views, on all cores", packing["crops"], "ms"),
    ]  # fmt: skip


def _bytes(bench: Bench, kind: Kind, setup: Setup) -> list[Figure]:
    """The bytes of packs of 35 dB, as a share of the videos' bytes."""
    data, figures = open_dataset(bench.data()), []
    video_bytes = sum(entry.bytes for entry in data.shards)
    for frames, what in (("crops", f"{STORED} views' crops"), ("all", "all frames")):
        pack = open_pack(bench.packed(frames, setup.size, psnr=35.0))
        size = sum(p.stat().st_size for p in pack.path.rglob("*.tar"))
        identity = pack.manifest.identity
        name = f"{kind}: bytes of {what} at 35 dB (quality {identity.quality}, {identity.height} px) ÷ the videos'"
        goal = frames != "all" and (kind.width, kind.height) == (340, 256)
        figures.append(at_most(name, [size / video_bytes], "", 1.0) if goal else Figure(name, size / video_bytes, ""))
    return figures
