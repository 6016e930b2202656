"""Deployment: what a clip costs in teacher and student, by size and runtime, against their multiply-adds.

The pair is the paper's: a TSN-R152 at 224 px teaches a TSN-R50 at 112 px, 16 frames each. The architectures are the real
ones; their weights are random, since the cost doesn't depend on them. One clip is one call. Each round measures all cells,
one after another, and each ratio is of one round. One core: its CPU time. All cores: core seconds (see `core_seconds`)
divided by the cores, which is the time that the call would take without other programs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cache.view import ViewPolicy, sample_view
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.deploy_runs import (
    CORES,
    EAGER,
    FLOAT,
    INT8,
    Cell,
    Net,
    Times,
    build_net,
    cell_calls,
    measure_calls,
    threads_kept,
)
from stages.bench.figures import Figure, at_least, measured, median_of, show
from stages.bench.videos import SMALL, make_videos
from stages.export.program import check_packages
from stages.models.config import ModelConfig
from stages.models.video_model import model_stats
from stages.models.zoo import ZOO
from stages.runtime.terminal import console
from stages.video.decode import decode_frames, probe
from stages.video.render import render

SHARE = 0.8  # goal: latency falls by this share of the ratio of multiply-adds
TEACHER, STUDENT = "TSN-R152", "TSN-R50"
# BatchNorms that begin with zeros would let a runtime skip whole branches.
NETS = {name: ZOO[key].model_copy(update={"args": {"zero_init_last": False}})
        for name, key in ((TEACHER, "tsn_r152"), (STUDENT, "tsn_r50"))}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """`pairs`: nets whose latencies are compared in each runtime that runs both."""

    cells: tuple[Cell, ...]
    pairs: tuple[tuple[Net, Net], ...]
    nets: Mapping[str, ModelConfig]
    seconds: float = 10.0  # of the video
    runs: int = RUNS


T224, S224, S112, S72 = Net(TEACHER, 224), Net(STUDENT, 224), Net(STUDENT, 112), Net(STUDENT, 72)
PAIRS = ((T224, S112), (S224, S112), (S224, S72))
FULL = Setup((Cell(T224, EAGER), Cell(S224, EAGER), Cell(S112, EAGER), Cell(T224, FLOAT), Cell(S224, FLOAT),
              Cell(S112, FLOAT), Cell(S72, FLOAT), Cell(S112, INT8)), PAIRS, NETS)  # fmt: skip
QUICK = Setup((Cell(S112, EAGER), Cell(T224, FLOAT), Cell(S224, FLOAT), Cell(S112, FLOAT), Cell(S112, INT8)),
              PAIRS, NETS, runs=3)  # fmt: skip


def run_deploy(quick: bool, output: Path | None, folder: Path) -> list[Figure]:
    """Measure the cells, and decoding with 340x256 clips of GOP 12, which are made in `folder` and kept.

    Raises ReskdError if the packages of the extra `export` are missing.
    """
    check_packages("bench deploy", "bench deploy")
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as temporary, threads_kept():
        models = {name: build_net(config) for name, config in setup.nets.items()}
        calls = {call: work for cell in setup.cells for call, work in cell_calls(cell, models, Path(temporary)).items()}
        times = measure_calls(calls, setup.runs)
    nets = list(dict.fromkeys(cell.net for cell in setup.cells))
    gmacs = {net: model_stats(models[net.name], net.size).gmacs for net in nets}
    decoding = _decoding(setup, nets, folder)
    figures = [Figure(f"{net}: GFLOPs (multiply-adds) of a clip", gmacs[net], "") for net in nets]
    figures += [measured(_name(*call), values, "ms a clip") for call, values in times.items()]
    figures += [measured(f"decoding and rendering for {net}", ms, "ms a clip") for net, ms in decoding.items()]
    figures += _ratios(setup, times, gmacs)
    console.print(_table(setup.cells, times, gmacs, decoding))
    show("deploy", figures, output)
    return figures


def _decoding(setup: Setup, nets: Sequence[Net], folder: Path) -> dict[Net, list[float]]:
    """The milliseconds of one core that a net's clip takes to be decoded and rendered, of each run."""
    video = next(make_videos(folder, SMALL[0], 1, setup.seconds).rglob("*.mp4")).read_bytes()
    info = probe(video)

    def work(net: Net) -> np.ndarray:
        policy = ViewPolicy(num_frames=setup.nets[net.name].num_frames, jitter=False, crop="center", flip=0.0)
        view = sample_view(policy, shard="", key="", index=0, num_frames=info.frames, aspect=info.width / info.height)
        return render(decode_frames(video, view.frames, info.decoder)[0], view, net.size)

    return {net: [1e3 * s for s in cpu_seconds(partial(work, net), setup.runs)] for net in nets}


def _ratios(setup: Setup, times: Times, gmacs: Mapping[Net, float]) -> list[Figure]:
    figures = []
    for larger, smaller in setup.pairs:
        for runtime in (EAGER, FLOAT):
            for on in CORES:
                pair = (Cell(larger, runtime), on), (Cell(smaller, runtime), on)
                if not times.keys() >= set(pair):
                    continue
                ratios = np.divide(times[pair[0]], times[pair[1]])
                name, bound = f"{larger} ÷ {smaller}, {runtime}, {on}", gmacs[larger] / gmacs[smaller]
                figures += [measured(f"{name}: latency", ratios, "times"),
                            at_least(f"{name}: of the ratio of GFLOPs", ratios / bound, "", SHARE)]  # fmt: skip
    for cell in setup.cells:
        for on in CORES if cell.runtime == INT8 else ():
            ratios = np.divide(times[Cell(cell.net, FLOAT), on], times[cell, on])
            figures.append(measured(f"{cell.net}, {on}: float ÷ int8, latency", ratios, "times"))
    return figures


def _name(cell: Cell, on: str) -> str:
    return f"{cell.net}, {cell.runtime}, {on}"


def _table(
    cells: Sequence[Cell], times: Times, gmacs: Mapping[Net, float], decoding: Mapping[Net, list[float]]
) -> Table:
    """A row for each cell: milliseconds and clips a second of the net alone; clips a second with decoding, on one core."""
    headers = ("GFLOPs", "ms\n1 core", "clips/s", "with\ndecoding", "ms\nall cores", "clips/s")
    table = Table("net, px", "runtime", title="a clip; onnx: by onnxruntime", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  pad_edge=False)  # fmt: skip
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for cell in cells:
        one, every = (median_of(times[cell, on])[0] for on in CORES)
        decode = median_of(decoding[cell.net])[0]
        values = gmacs[cell.net], one, 1e3 / one, 1e3 / (one + decode), every, 1e3 / every
        figures = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)
        table.add_row(f"{cell.net.name} {cell.net.size}", cell.runtime.replace("onnxruntime", "onnx"), *figures)
    return table
