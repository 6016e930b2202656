"""Stage one with more and more clips. The time per clip and the memory should not grow."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stages.bench.figures import Figure, at_most, measured
from stages.bench.processes import in_new_process
from stages.bench.stage1_runs import TINY, Setup, cache_filler, make_dataset, measure_rate, stage_one_config
from stages.runtime.distributed import Ranks, join_ranks
from stages.runtime.memory import peak_memory
from stages.shards.dataset import open_dataset
from stages.stream.loading import decoding_workers
from stages.teacher.config import CacheConfig

FLAT = 1.10  # the goal: with more clips, a cost grows by 10 % at most


def over_more_clips(folder: Path, videos: Path, setup: Setup, ranks: Ranks) -> list[Figure]:
    """The time of a clip·view with a tiny teacher, for 1, 2, 4, … times the clips."""
    runs, figures = {}, []
    for times in setup.times:
        data = make_dataset(folder / f"x{times}", videos, setup.few * times)
        runs[times] = cache_filler(stage_one_config(folder, data, TINY, 112, setup, f"x{times}.zarr"), data, ranks)
    runs[setup.times[0]]()
    times_ms = {times: [] for times in runs}
    for _ in range(setup.runs):
        for times, run in runs.items():
            times_ms[times].append(
                1e3 / measure_rate(run, setup.few * times * setup.views, ranks.device.type == "cuda")
            )
    for times, ms in times_ms.items():
        figures.append(measured(f"stage one, tiny teacher, {setup.few * times} clips", ms, "ms a clip·view"))
    first, last = setup.times[0], setup.times[-1]
    growth = [b / a for a, b in zip(times_ms[first], times_ms[last], strict=True)]
    return [*figures, at_most(f"time a clip·view, {last} times the clips ÷ once", growth, "", FLAT)]


def memory_over_more_clips(folder: Path, videos: Path, setup: Setup) -> list[Figure]:
    """The peak memory, in a new process for each number of clips. More clips are more shards of the same size.

    The peak in MB is the highest sample of the process tree's memory, each page counted once. With more samples that peak
    rises by chance. So growth is computed from the kernel's high-water marks of the process and of its largest worker,
    which count shared pages twice.
    """
    peaks = {}
    for times in setup.sizes:
        data = make_dataset(folder / f"m{times}", videos, setup.many * times, shard=setup.many)
        config = stage_one_config(folder, data, TINY, 112, setup, f"m{times}.zarr")
        peaks[times] = in_new_process(partial(_peak, config))
    first, last = setup.sizes[0], setup.sizes[-1]
    figures = [Figure(f"peak memory, {setup.many * times} clips", peak, "MB") for times, (peak, _) in peaks.items()]
    growth = peaks[last][1] / peaks[first][1]
    return [*figures, at_most(f"high-water mark, {last} times the clips ÷ once", [growth], "", FLAT)]


def _peak(config: CacheConfig) -> tuple[float, float]:
    import resource  # Windows doesn't have it, and the other benches run there

    data = open_dataset(config.data)
    with join_ranks() as ranks, peak_memory(every=0.25) as peak:
        cache_filler(config, data, ranks)()
        marks = [resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return peak(), marks[0] + decoding_workers(config.loader) * marks[1]
