"""Where a run's frames come from: the videos, or a pack of them that is held against the data set and the views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.differences import differing_shards
from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.runtime.log import console
from stages.shards.dataset import Dataset
from stages.stream.clips import decode_kept
from stages.stream.config import LoaderConfig
from stages.stream.frame_height import size_served, smallest_side
from stages.stream.pack_reader import Pack, open_pack
from stages.stream.replay import Replay


def open_frames(data: Dataset, path: Path | None) -> tuple[Dataset, Pack | None]:
    """The data set's pack, and the data set without the rows that are in its quarantine; without a pack, its tars.

    Raises ReskdError where the pack isn't finished, is of other shards or has lost one; or where a tar isn't there.
    """
    if path is None:
        data.check_files()
        return data, None
    pack = open_pack(path)
    names, packed = {entry.name for entry in data.shards}, pack.manifest.identity.shards  # a pack may have more shards
    lines = differing_shards([e for e in packed if e.name in names], data.shards, ("the pack", str(data.path)))
    if lines:
        raise ReskdError(f"{path} is a pack of other videos than {data.path} has: {'; '.join(lines)}. Give the data set that it "
                         "was made of, or run `pack` into a new folder")  # fmt: skip
    pack.check_files()
    known = sum(map(len, data.usable_rows()))
    data = data.leaving_out(pack.manifest.quarantine)
    if lost := known - sum(map(len, data.usable_rows())):
        console.print(f"[yellow]warning[/] {path}: {lost} of {known} clips are in its quarantine and left out")
    return data, pack


def frames_by(pack: Pack | None, loader: LoaderConfig) -> dict[str, Any]:
    """How `Clips` comes by its frames. Those of videos, large as they may be, are always shrunk where they are decoded."""
    if pack and pack.manifest.identity.frames == "crops":
        return {"crops": pack.crop}
    if pack:
        return {"decode": pack.decode, "on_device": loader.render == "device"}
    return {"decode": decode_kept if loader.resident else None}


def check_stored(pack: Pack, replay: Replay, cache: Path) -> None:
    """Raises ReskdError unless the frames of the stored views that are replayed are in the pack."""
    made, stored = pack.manifest.identity, replay.manifest.identity
    if made.decoder != stored.decoder:
        console.print(f"[yellow]warning[/] {pack.path} was decoded by {made.decoder}, {cache} by {stored.decoder}: frames may "
                      "differ a little")  # fmt: skip
    if made.frames == "all":
        return
    if made.policy != stored.policy:
        raise ReskdError(f"{pack.path} was packed for views of another policy than those of {cache}: run `pack` with this "
                         "cache into a new folder")  # fmt: skip
    if made.views < replay.views:
        raise ReskdError(f"{pack.path} has the frames of {made.views} stored views, {replay.views} of {cache} are asked "
                         f"for: run `pack` with views={replay.views} into a new folder, or lower data.views")  # fmt: skip


def check_fresh(pack: Pack, policy: ViewPolicy, size: int, what: str) -> None:
    """Raises ReskdError unless every frame is in the pack; a word where crops of the policy's views are enlarged."""
    if pack.manifest.identity.frames != "all":
        raise ReskdError(f"{pack.path} has the frames of {pack.manifest.identity.views} stored views alone, and {what} may "
                         "need any: run `pack` with frames: all into a new folder, or leave the pack out")  # fmt: skip
    warn_if_enlarged(pack, policy, size)


def warn_if_enlarged(pack: Pack, policy: ViewPolicy, size: int) -> None:
    """A word where views of this policy at `size` px have crops that the pack's height is too low for."""
    made = pack.manifest.identity
    side = made.side if made.policy == policy else smallest_side(policy)
    if size > (served := size_served(made.height, side)):
        console.print(f"[yellow]warning[/] {pack.path}: frames of {made.height} px serve students of up to {served} px without "
                      f"enlarging any crop, this one has {size} px: run `pack` with size={size} into a new folder")  # fmt: skip
