"""The choice of an engine, and what one is given to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.errors import ReskdError
from stages.engine.actor import Work
from stages.remote.url_path import Location


@dataclass(frozen=True)
class Engine:
    """Ray. `address`: of a cluster; None: a Ray of this machine is started. `actors`: on each node; None: as many as fit."""

    address: str | None = None
    actors: int | None = None


@dataclass(frozen=True)
class Job:
    """Work for an engine.

    `threads`: of each actor; None: the node's cores are shared out. `cores`: that one actor fills; it decides how many a
    node without GPUs gets. `output`: the folder for Ray's own files. `size`: unit -> its part of the progress.
    """

    work: Work
    units: Mapping[str, Any]
    size: Mapping[str, int]
    title: str
    progress_unit: str
    output: Location
    inputs: tuple[Location, ...]
    threads: int | None = None
    cores: int = 1
    strict: bool = False  # whether the first unit that can't be done ends the run


def chosen_engine(name: str | None, address: str | None, actors: int | None) -> Engine | None:
    """The engine of the options of `ENGINE`; None without one. Raises ReskdError for options that need one."""
    if name is not None:
        return Engine(address, actors)
    if address is not None or actors is not None:
        raise ReskdError("--address and --actors are options of an engine: give --engine ray, too")
    return None
