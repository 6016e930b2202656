"""What of a cache a run replays, fixed at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import ReskdError
from cache.group import load_group, load_manifest
from cache.manifest import Manifest
from cache.reader import CacheReader, check_join
from cache.store import METADATA
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.video.decode import decoder_identity


@dataclass(frozen=True)
class Replay:
    """The part of a cache that a run replays, frozen at its start: a cache that grows doesn't change it."""

    manifest: Manifest
    views: int
    rows: list[np.ndarray]  # of each shard of the data set
    constants: dict[str, np.ndarray]  # of the cache's root; none where no loss reads features

    @property
    def width(self) -> int | None:
        """D of the teacher's own map; None where no maps are stored."""
        maps = self.manifest.identity.targets.get("features")
        return maps["map"][3] if maps else None


def open_replay(path: Path, views: int | None, targets: Sequence[str], data: Dataset, allow_partial: bool) -> Replay:
    """Hold the cache against the data set, and fix which views and rows are replayed, with which targets.

    `views`: the first so many; all finished ones where None.

    Raises ReskdError for a cache of other shards, one that isn't finished (unless `allow_partial`), one with fewer
    views than asked for, or without these targets.
    """
    manifest = load_manifest(path)
    check_join(manifest, data.shards)
    if tuple(manifest.identity.classes) != tuple(data.classes):
        raise ReskdError(f"{path} was made for other classes than {data.path} has: make it anew")
    if manifest.identity.decoder != decoder_identity():
        console.print(f"[yellow]warning[/] {path} was decoded by {manifest.identity.decoder}, here it is "
                      f"{decoder_identity()}: frames may differ a little")  # fmt: skip
    views = views or manifest.finalised or manifest.views
    if views > manifest.views:
        raise ReskdError(f"data.views {views}: {path} has {manifest.views} views: lower it, or raise `views` of "
                         f"cache-teacher")  # fmt: skip
    reader = CacheReader(path, targets)  # raises for a target that it doesn't store
    constants = reader.constants() if "features" in targets else {}
    usable = data.usable_rows()
    unfinished = lacks(path, manifest, data, views, targets)
    if unfinished is None:
        rows = [
            np.setdiff1d(u, list(manifest.quarantine.get(e.name, {}))) for e, u in zip(data.shards, usable, strict=True)
        ]
        return Replay(manifest, views, rows, constants)
    if not allow_partial:
        raise ReskdError(f"{path} is not finished ({unfinished}): run cache-teacher again, or train on what is there by "
                         f"train-student --allow-partial")  # fmt: skip
    return Replay(manifest, views, _partial_rows(path, views, targets, data, usable), constants)


def lacks(path: Path, manifest: Manifest, data: Dataset, views: int, targets: Sequence[str]) -> str | None:
    """What these shards lack; None where they have all. Read off the root, but for groups that were lost."""
    finished = {entry.name for entry in manifest.identity.shards[: manifest.finalised_shards]}
    lacking = [e.name for e in data.shards if e.name not in finished or not (path / e.name / METADATA).exists()]
    if lacking:
        return f"it lacks {len(lacking)} shards, {lacking[0]} first"
    if views > manifest.finalised:
        return f"{manifest.finalised} of {views} views"
    absent = [target for target in targets if target not in manifest.finalised_targets]
    return f"its {' and '.join(absent)} are not there yet" if absent else None


def _partial_rows(
    path: Path, views: int, targets: Sequence[str], data: Dataset, usable: list[np.ndarray]
) -> list[np.ndarray]:
    """What an unfinished cache has: shards that have all the views, without their quarantined rows."""
    rows, left_out = [], []
    for entry, of_shard in zip(data.shards, usable, strict=True):
        group = load_group(path, entry.name)
        if group is None or group["views"] < views or not {*targets} <= {*group["targets"]}:
            left_out.append(entry.name)
            rows.append(of_shard[:0])
            continue
        rows.append(of_shard[~np.isin(group["keys"], list(group["quarantine"]))[of_shard]])
    clips = sum(len(u) for u in usable) - sum(map(len, rows))
    console.print(f"[yellow]--allow-partial[/] {path}: leaves out {len(left_out)} of {len(data.shards)} shards "
                  f"({clips} clips) that lack some of {views} views: {', '.join(left_out[:10])}"
                  + (" …" if len(left_out) > 10 else ""))  # fmt: skip
    return rows
