"""Tasks in processes of their own: of one thread each, to train several small nets at once, or new, to measure memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

import torch

from stages.runtime.fresh_process import fresh_context, start_by_default
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
    with ProcessPoolExecutor(workers, fresh_context(preload), initializer=_set_up_process) as pool:
        futures = {pool.submit(task): key for key, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_new_process(task: partial) -> Any:
    """The result of a task in a process that has computed nothing yet. Its own processes start by the platform's default."""
    with ProcessPoolExecutor(1, fresh_context(task.func.__module__)) as pool:
        return pool.submit(_with_default_start, task).result()


def _with_default_start(task: partial) -> Any:
    start_by_default()
    return task()


def _set_up_process() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    console.quiet = True
