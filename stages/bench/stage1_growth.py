"""Stage one over more and more clips: its pace and its memory should stay as they are."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stages.bench.figures import Figure, at_most, measured
from stages.bench.stage1_runs import TINY, Setup, config_for, filling, prepared, rate_of
from stages.runtime.distributed import Ranks, join_ranks
from stages.runtime.memory import peak_memory
from stages.shards.dataset import open_dataset
from stages.stream.loading import decoding_workers
from stages.teacher.config import CacheConfig

FLAT = 1.10  # what grows by more over more clips isn't flat


def over_more_clips(folder: Path, videos: Path, setup: Setup, ranks: Ranks) -> list[Figure]:
    """Milliseconds of a clip·view with a tiny teacher, over 1, 2, 4, … times the clips."""
    runs, figures = {}, []
    for times in setup.times:
        data = prepared(folder / f"x{times}", videos, setup.few * times)
        runs[times] = filling(config_for(folder, data, TINY, 112, setup, f"x{times}.zarr"), data, ranks)
    runs[setup.times[0]]()
    each = {times: [] for times in runs}
    for _ in range(setup.runs):
        for times, run in runs.items():
            each[times].append(1e3 / rate_of(run, setup.few * times * setup.views, ranks.device.type == "cuda"))
    for times, taken in each.items():
        figures.append(measured(f"stage one, tiny teacher, {setup.few * times} clips", taken, "ms a clip·view"))
    first, last = setup.times[0], setup.times[-1]
    growth = [b / a for a, b in zip(each[first], each[last], strict=True)]
    return [*figures, at_most(f"time a clip·view, {last} times the clips ÷ once", growth, "", FLAT)]


def memory_over_more_clips(folder: Path, videos: Path, setup: Setup) -> list[Figure]:
    """Peak of the process tree, in a fresh process for each number of clips; shards stay as large, so they are more.

    Its size is sampled, each page once. Growth is held against the kernel's own high-water marks, of this process and of
    its largest worker, in which shared pages count twice: a peak of samples is higher the more there are.
    """
    peaks = {}
    for times in setup.sizes:
        data = prepared(folder / f"m{times}", videos, setup.many * times, shard=setup.many)
        config = config_for(folder, data, TINY, 112, setup, f"m{times}.zarr")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks[times] = pool.submit(_peak, config).result()
    first, last = setup.sizes[0], setup.sizes[-1]
    figures = [Figure(f"peak memory, {setup.many * times} clips", peak, "MB") for times, (peak, _) in peaks.items()]
    growth = peaks[last][1] / peaks[first][1]
    return [*figures, at_most(f"high-water mark, {last} times the clips ÷ once", [growth], "", FLAT)]


def _peak(config: CacheConfig) -> tuple[float, float]:
    import resource  # not on Windows, where `bench` has other commands

    multiprocessing.set_start_method(None, force=True)  # the platform's for workers, not that of this process
    data = open_dataset(config.data)
    with join_ranks() as ranks, peak_memory(every=0.25) as peak:
        filling(config, data, ranks)()
        marks = [resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return peak(), marks[0] + decoding_workers(config.loader) * marks[1]
