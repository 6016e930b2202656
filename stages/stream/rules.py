"""Which rules say what frame i of a video is: those of a data set, and those of a cache or pack made from it earlier.

A version may decide otherwise than the one before for some videos: another frame stands at place i, or a file is refused.
`prepare --recheck` finds these rows of a data set. What was computed from them by older rules is masked until it is
computed again, since its targets belong to other pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from cache.errors import ReskdError
from cache.identity import ShardEntry
from stages.remote.url_path import Location
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.video.decode import RULES


def check_rules(data: Dataset) -> None:
    """Raises ReskdError if the rows of a data set were made by older rules, and not checked since."""
    if data.rules < RULES:
        raise ReskdError(f"{data.path}: its videos were checked by an older version (rules {data.rules}, now {RULES}), and "
                         f"frames of some are others now. Run `prepare --recheck {data.path}`, which lists them")  # fmt: skip


def rows_of_older_rules(
    path: Location, stored: Sequence[ShardEntry], data: Dataset, command: str
) -> dict[str, dict[int, str]]:
    """Shard -> row -> reason, for the rows whose frames are others now than when a cache or pack at `path` was made.

    `stored`: its shards. `command`: what computes them again. Raises ReskdError where it can't be known which rows these
    are: if the data set was made anew since.
    """
    check_rules(data)
    older, changed = {entry.name: entry for entry in stored}, {}
    others = [
        e.name
        for e in data.shards
        if e.name in older and older[e.name].rules < RULES and older[e.name].sha256 != e.sha256
    ]
    if others:
        console.print(f"[yellow]warning[/] {path}: {len(others)} shards, {others[0]} first, were made by older rules for frames, "
                      f"from other files than {data.path} has. Frames of odd videos may be others there")  # fmt: skip
    for entry in data.shards:
        rules = older.get(entry.name, entry).rules
        if entry.rules <= rules <= data.rules:  # newer rules changed nothing in this shard of the data set
            continue
        if entry.name not in data.changed or rules > data.rules:
            raise ReskdError(f"{path}: shard {entry.name} was made by rules {rules} for the frames of videos, {data.path} by "
                             f"rules {entry.rules}, and which of its rows differ isn't known. Run `{command}`")  # fmt: skip
        reason = f"its frames changed with newer rules; run `{command}`"
        changed[entry.name] = {row: reason for row, number in data.changed[entry.name].items() if number > rules}
    return changed
