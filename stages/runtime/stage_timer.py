"""The seconds of each stage of a long run, kept over reruns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cache.errors import StoreError
from stages.config.json_result import read_result
from stages.remote.outputs import write_whole
from stages.remote.url_path import Location
from stages.runtime.terminal import console


def stage_timer(path: Location) -> tuple[Callable[[str, Callable[[], Any]], Any], dict[str, float]]:
    """Returns `timed(name, stage)`, which runs a stage and returns its result, and the seconds of each stage by name.

    The seconds are stored in `path`. Calls that were interrupted count. Calls after the first complete one do not.
    """
    stored = _stored(path)
    seconds, done = stored["seconds"], stored["done"]

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        console.rule(name)
        started = time.perf_counter()
        try:
            result = stage()
        finally:
            if name not in done:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
                _store(path, stored)
        if name not in done:
            done.append(name)
            _store(path, stored)
        return result

    return timed, seconds


def note_seconds(path: Location, more: Mapping[str, float]) -> dict[str, float]:
    """Store the seconds of complete stages that ran elsewhere, as `timed` does. Returns the seconds of each stage by name."""
    stored = _stored(path)
    for name in more.keys() - set(stored["done"]):
        stored["seconds"][name] = stored["seconds"].get(name, 0.0) + more[name]
        stored["done"].append(name)
    _store(path, stored)
    return stored["seconds"]


def _stored(path: Location) -> dict[str, Any]:
    return read_result(path) if path.is_file() else {"seconds": {}, "done": []}


def _store(path: Location, stored: Mapping[str, Any]) -> None:
    """A store that doesn't take the seconds costs no stage, and hides no error of one."""
    try:
        write_whole(path, json.dumps(stored).encode())
    except StoreError as error:
        console.print(f"[yellow]warning[/] the seconds are not stored: {error}", highlight=False, soft_wrap=True)
