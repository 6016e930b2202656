"""The seconds of each stage of a long run, kept over reruns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache.store import write_atomically
from stages.config.json_result import read_result
from stages.runtime.terminal import console


def stage_timer(path: Path) -> tuple[Callable[[str, Callable[[], Any]], Any], dict[str, float]]:
    """Returns `timed(name, stage)`, which runs a stage and returns its result, and the seconds of each stage by name.

    The seconds are stored in `path`. Calls that were interrupted count. Calls after the first complete one do not.
    """
    stored = read_result(path) if path.exists() else {"seconds": {}, "done": []}
    seconds, done = stored["seconds"], stored["done"]

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        console.rule(name)
        started = time.perf_counter()
        try:
            result = stage()
        finally:
            if name not in done:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
                write_atomically(path, json.dumps(stored).encode())
        if name not in done:
            done.append(name)
            write_atomically(path, json.dumps(stored).encode())
        return result

    return timed, seconds


def note_seconds(path: Path, more: Mapping[str, float]) -> dict[str, float]:
    """Store the seconds of complete stages that ran elsewhere, as `timed` does. Returns the seconds of each stage by name."""
    stored = read_result(path) if path.exists() else {"seconds": {}, "done": []}
    for name in more.keys() - set(stored["done"]):
        stored["seconds"][name] = stored["seconds"].get(name, 0.0) + more[name]
        stored["done"].append(name)
    write_atomically(path, json.dumps(stored).encode())
    return stored["seconds"]
