"""A pack against the videos that it is made of: a student's input, and bytes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cache.reader import CacheReader
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.figures import Figure, at_least, at_most, measured, profiled, show
from stages.bench.students import FRAMES, Bench, bench_of
from stages.bench.videos import LARGE, SMALL, Kind
from stages.runtime.distributed import join_ranks
from stages.shards.dataset import open_dataset
from stages.stream.clips import Clips
from stages.stream.config import LoaderConfig
from stages.stream.frame_source import frames_by
from stages.stream.pack_reader import open_pack

GOALS = {SMALL[0]: 20, SMALL[1]: 20, LARGE[0]: 200, LARGE[1]: 200}
STORED = 4  # views of the cache


@dataclass(frozen=True)
class Setup:
    """Of each kind of video so many `clips`; a student's input is that of one view at `size` px."""

    kinds: tuple[Kind, ...] = (*SMALL, *LARGE)
    clips: int = 4
    size: int = 112
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(kinds=(*SMALL, LARGE[1]), clips=2)


def run_pack(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure on ten-second clips, which are made in `folder` and kept: packs of four stored views, and of all frames."""
    setup, figures = QUICK if quick else FULL, []
    with join_ranks():
        for kind in setup.kinds:
            with tempfile.TemporaryDirectory() as temporary:
                bench = replace(bench_of(Path(temporary), folder, kind, setup.clips, 1, setup.seconds), views=STORED)
                with profiled(trace if kind == setup.kinds[-1] else None):
                    figures += _input(bench, kind, setup)
                figures += _bytes(bench, kind, setup)
    show("pack", figures, output)
    return figures


def _input(bench: Bench, kind: Kind, setup: Setup) -> list[Figure]:
    """Milliseconds of one core for a clip of a batch, joined, decoded and rendered."""
    data, reader = open_dataset(bench.data()), CacheReader(bench.cache(), ("logits",))
    packs, packing = {}, {}
    for frames in ("views", "crops"):
        began = time.perf_counter()
        packs[frames] = open_pack(bench.packed(frames, setup.size))
        packing[frames] = 1e3 * (time.perf_counter() - began) / setup.clips
    taken, indices = {}, [(0, r, 0) for r in range(setup.clips)]
    ways = {
        "the videos": (None, "workers"),
        "the pack": (packs["views"], "workers"),
        "the pack, shrunk on the device": (packs["views"], "device"),
        "a pack of crops": (packs["crops"], "workers"),
    }
    for name, (pack, where) in ways.items():
        clips = Clips(data, size=setup.size, num_classes=2, cache=reader,
                      **frames_by(pack, LoaderConfig(render=where)))  # fmt: skip
        work = partial(clips.__getitems__, indices)
        taken[name] = [1e3 * seconds / setup.clips for seconds in cpu_seconds(work, setup.runs)]
        if clips.on_device:
            pixels = clips.__getitems__(indices).windows.pixels.nbytes / setup.clips
    source, goal = taken["the videos"], GOALS.get(kind, 20)
    return [
        *(measured(f"{kind}: a student's input from {name}", ms, "ms a clip") for name, ms in taken.items()),
        *(at_least(f"{kind}: the videos ÷ {name}", [a / b for a, b in zip(source, ms, strict=True)], "times", goal)
          for name, ms in taken.items() if ms is not source),
        Figure(f"{kind}: bytes of what is shrunk on the device ÷ of pictures", pixels / (FRAMES * 3 * setup.size**2), ""),
        *(Figure(f"{kind}: packing the {name} of a clip's {STORED} views, on all cores", ms, "ms")
          for name, ms in {"frames": packing["views"], "crops": packing["crops"]}.items()),
    ]  # fmt: skip


def _bytes(bench: Bench, kind: Kind, setup: Setup) -> list[Figure]:
    """Bytes of a pack over those of the videos, at 35 dB."""
    data, figures = open_dataset(bench.data()), []
    source = sum(entry.bytes for entry in data.shards)
    for frames, what in (
        ("views", f"{STORED} views' frames"),
        ("crops", f"{STORED} views' crops"),
        ("all", "all frames"),
    ):
        pack = open_pack(bench.packed(frames, setup.size, psnr=35.0))
        size = sum(p.stat().st_size for p in pack.path.rglob("*.tar"))
        made = pack.manifest.identity
        name = f"{kind}: bytes of {what} at 35 dB (quality {made.quality}, {made.height} px) ÷ the videos'"
        goal = frames != "all" and (kind.width, kind.height) == (340, 256)
        figures.append(at_most(name, [size / source], "", 1.0) if goal else Figure(name, size / source, ""))
    return figures
