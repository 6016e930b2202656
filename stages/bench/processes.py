"""Tasks in processes of one thread each: the benches train several small nets at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from stages.runtime.terminal import console


def in_processes(tasks: Mapping[Any, Callable[[], Any]], jobs: int | None, preload: str) -> Iterator[tuple[Any, Any]]:
    """(key, result) of each task when it ends. `jobs`: processes; None: as many as cores; 1: this process, one after another.

    `preload`: a module that the processes import once.
    """
    if not tasks:
        return
    workers = min(jobs or os.cpu_count() or 1, len(tasks))
    if jobs == 1:
        yield from ((key, task()) for key, task in tasks.items())
        return
    # A fork server imports everything once, where the platform has one.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([preload])
    with ProcessPoolExecutor(workers, context, initializer=_set_up_process) as pool:
        futures = {pool.submit(task): key for key, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _set_up_process() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    console.quiet = True
