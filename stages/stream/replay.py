"""The part of a cache that a run replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import ReskdError
from cache.group import load_groups, load_manifest
from cache.manifest import Manifest
from cache.reader import CacheReader, check_join
from cache.store import METADATA
from stages.remote.url_path import Location
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.rules import rows_of_older_rules
from stages.video.decode import decoder_identity


@dataclass(frozen=True)
class Replay:
    """The part of a cache that a run replays. It is fixed when the run starts: a cache that grows doesn't change it."""

    manifest: Manifest
    views: int  # the first ones of the cache
    rows: list[np.ndarray]  # for each shard of the data set the numbers of the replayed rows
    constants: dict[str, np.ndarray]  # of the cache's root; empty if no loss reads features

    @property
    def width(self) -> int | None:
        """The number of channels of the teacher's own map; None if the cache has no maps."""
        maps = self.manifest.identity.targets.get("features")
        return maps["map"][3] if maps else None


def open_replay(
    path: Location, views: int | None, targets: Sequence[str], data: Dataset, allow_partial: bool
) -> Replay:
    """Compare the cache at `path` with the data set, and choose the views and rows that the run replays.

    `views`: the number of views, the first ones; None: all finished ones. `targets`: those that the run reads.

    Raises ReskdError for a cache of other shards or classes, for one that isn't finished (unless `allow_partial`), and
    for one that lacks these views or targets.
    """
    manifest = load_manifest(path)
    check_join(manifest, data.shards)
    older = rows_of_older_rules(path, manifest.identity.shards, data, "cache-teacher")
    usable = sum(map(len, data.usable_rows()))
    data = data.with_quarantine(older)
    if masked := usable - sum(map(len, data.usable_rows())):
        console.print(f"[yellow]warning[/] {path}: {masked} clips are left out: newer rules changed their frames. Run "
                      "cache-teacher again, which computes their shards anew")  # fmt: skip
    if tuple(manifest.identity.classes) != tuple(data.classes):
        raise ReskdError(f"{path} was made for other classes than {data.path} has: run cache-teacher into a new folder")
    if manifest.identity.decoder != decoder_identity():
        console.print(f"[yellow]warning[/] {path} was decoded by {manifest.identity.decoder}, this machine "
                      f"has {decoder_identity()}: frames may differ a little")  # fmt: skip
    views = views or manifest.finalised or manifest.views
    if views > manifest.views:
        raise ReskdError(f"data.views {views}: {path} has {manifest.views} views: lower data.views, or raise `views` of "
                         f"cache-teacher")  # fmt: skip
    reader = CacheReader(path, targets)  # raises ReskdError for a target that the cache doesn't store
    constants = reader.constants() if "features" in targets else {}
    usable = data.usable_rows()
    unfinished = missing_parts(path, manifest, data, views, targets)
    if unfinished is None:
        rows = [
            np.setdiff1d(u, list(manifest.quarantine.get(e.name, {}))) for e, u in zip(data.shards, usable, strict=True)
        ]
        return Replay(manifest, views, rows, constants)
    if not allow_partial:
        raise ReskdError(f"{path} is not finished ({unfinished}): run cache-teacher again, or train on the finished shards "
                         f"by train-student --allow-partial")  # fmt: skip
    return Replay(manifest, views, _partial_rows(path, views, targets, data, usable), constants)


def missing_parts(path: Location, manifest: Manifest, data: Dataset, views: int, targets: Sequence[str]) -> str | None:
    """What the cache lacks of these shards, views and targets, for messages; None if it lacks nothing.

    Reads the root's manifest alone. A finished group that was deleted counts as lacking, too; but a store isn't asked, since
    a request for each shard would take long: who reads such a group raises the error."""
    finished = {entry.name for entry in manifest.identity.shards[: manifest.finalised_shards]}
    local = isinstance(path, Path)
    lacking = [
        e.name for e in data.shards if e.name not in finished or (local and not (path / e.name / METADATA).exists())
    ]
    if lacking:
        return f"it lacks {len(lacking)} shards, {lacking[0]} first"
    if views > manifest.finalised:
        return f"{manifest.finalised} of {views} views"
    absent = [target for target in targets if target not in manifest.finalised_targets]
    return f"it lacks the {' and '.join(absent)} of some shards" if absent else None


def _partial_rows(
    path: Location, views: int, targets: Sequence[str], data: Dataset, usable: list[np.ndarray]
) -> list[np.ndarray]:
    """The replayed rows of an unfinished cache: those of the shards with all views and targets, without quarantined rows."""
    rows, left_out = [], []
    groups = load_groups(path, [entry.name for entry in data.shards])
    for entry, shard_rows, group in zip(data.shards, usable, groups, strict=True):
        if group is None or group["views"] < views or not {*targets} <= {*group["targets"]}:
            left_out.append(entry.name)
            rows.append(shard_rows[:0])
            continue
        rows.append(shard_rows[~np.isin(group["keys"], list(group["quarantine"]))[shard_rows]])
    clips = sum(len(u) for u in usable) - sum(map(len, rows))
    console.print(f"[yellow]--allow-partial[/] {path}: leaves out {len(left_out)} of {len(data.shards)} shards "
                  f"({clips} clips) that lack some of {views} views: {', '.join(left_out[:10])}"
                  + (" …" if len(left_out) > 10 else ""))  # fmt: skip
    return rows
