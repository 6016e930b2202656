"""The choice of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from cache.errors import ReskdError


@dataclass(frozen=True)
class Engine:
    """Ray. `address`: of a cluster; None: a Ray of this machine is started. `actors`: on each node; None: as many as fit."""

    address: str | None = None
    actors: int | None = None


def chosen_engine(name: str | None, address: str | None, actors: int | None) -> Engine | None:
    """The engine of the options of `ENGINE`; None without one. Raises ReskdError for options that need one."""
    if name is not None:
        return Engine(address, actors)
    if address is not None or actors is not None:
        raise ReskdError("--address and --actors are options of an engine: give --engine ray, too")
    return None
