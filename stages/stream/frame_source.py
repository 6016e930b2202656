"""Where a run's frames come from: the videos, or a pack. A pack is compared with the data set and the views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cache.differences import differing_shards
from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.remote.url_path import Location
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset
from stages.stream.clips import decode_row_in_memory
from stages.stream.config import LoaderConfig
from stages.stream.frame_height import largest_size_served, smallest_side
from stages.stream.pack_reader import Pack, open_pack
from stages.stream.replay import Replay
from stages.stream.rules import check_rules, rows_of_older_rules


def open_frames(data: Dataset, path: Location | None) -> tuple[Dataset, Pack | None]:
    """The data set and its pack, at `path`; the pack's quarantined rows are added to the data set's. None: no pack.

    Raises ReskdError if the pack isn't finished, was made of other shards or lacks a file; without a pack, if a tar of
    the data set is missing or has another size; and as `check_rules` and `rows_of_older_rules` do.
    """
    check_rules(data)
    if path is None:
        data.check_files()
        return data, None
    pack = open_pack(path)
    names = {entry.name for entry in data.shards}
    packed = [entry for entry in pack.manifest.identity.shards if entry.name in names]  # a pack may have more shards
    rules = {entry.name: entry.rules for entry in data.shards}
    same_rules = [replace(entry, rules=rules[entry.name]) for entry in packed]
    lines = differing_shards(same_rules, data.shards, ("the pack", str(data.path)))
    if lines:
        raise ReskdError(f"{path} is a pack of other videos than {data.path} has: {'; '.join(lines)}. Give the pack's data "
                         "set, or run `pack` into a new folder")  # fmt: skip
    pack.check_files()
    usable = sum(map(len, data.usable_rows()))
    older = rows_of_older_rules(path, packed, data, "pack")
    data = data.with_quarantine(pack.manifest.quarantine).with_quarantine(older)
    if quarantined := usable - sum(map(len, data.usable_rows())):
        console.print(f"[yellow]warning[/] {path}: {quarantined} of {usable} clips are in its quarantine and left out")
    return data, pack


def frame_options(pack: Pack | None, loader: LoaderConfig) -> dict[str, Any]:
    """The arguments of `ClipDataset` that say where frames come from."""
    if pack and pack.manifest.identity.frames == "crops":
        return {"crops": pack.crop}
    if pack:
        return {"decode": pack.decode}
    return {"decode": decode_row_in_memory if loader.resident else None}


def check_stored_views(pack: Pack, replay: Replay, cache: Location) -> None:
    """Raises ReskdError unless the pack has the frames of all stored views that the run replays."""
    packed, stored = pack.manifest.identity, replay.manifest.identity
    if packed.decoder != stored.decoder:
        console.print(f"[yellow]warning[/] {pack.path} was decoded by {packed.decoder}, {cache} by {stored.decoder}: frames "
                      "may differ a little")  # fmt: skip
    if packed.frames == "all":
        return
    if packed.policy != stored.policy:
        raise ReskdError(f"{pack.path} was packed for views of another policy than those of {cache}: run `pack` with this "
                         "cache into a new folder")  # fmt: skip
    if packed.views < replay.views:
        raise ReskdError(f"{pack.path} has {packed.views} stored views, the run replays {replay.views} of "
                         f"{cache}: run `pack` with views={replay.views} into a new folder, or lower data.views")  # fmt: skip


def check_fresh_views(pack: Pack, policy: ViewPolicy, size: int, what: str) -> None:
    """Raises ReskdError unless the pack has every frame; prints a warning if crops of the policy's views are enlarged.

    `what`: the use of the frames, for the message."""
    if pack.manifest.identity.frames != "all":
        raise ReskdError(f"{pack.path} has {pack.manifest.identity.views} stored views alone, and {what} may "
                         "need any frame: run `pack` with frames: all into a new folder, or leave the pack out")  # fmt: skip
    warn_if_enlarged(pack, policy, size)


def warn_if_enlarged(pack: Pack, policy: ViewPolicy, size: int) -> None:
    """Print a warning if the pack's height is too low for some crops of this policy's views at `size` px."""
    identity = pack.manifest.identity
    side = identity.side if identity.policy == policy else smallest_side(policy)
    if size > (served := largest_size_served(identity.height, side)):
        console.print(f"[yellow]warning[/] {pack.path}: frames of {identity.height} px serve students of up to {served} px "
                      f"without enlarging any crop, this student has {size} px: "
                      f"run `pack` with size={size} into a new folder")  # fmt: skip
