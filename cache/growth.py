"""How a cache grows in place: what it lacks, and how an existing group takes more views or another target.

More views: first the arrays' shapes, then the new chunk files, then the attributes. Another target of the views that are
there: first its arrays, then the attributes.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.differences import Translate, differing_identities
from cache.errors import ReskdError
from cache.group import ArraySpec, create_arrays, load_group, resize_array
from cache.identity import Identity
from cache.manifest import Manifest
from cache.store import METADATA, VerifiedStore


def grown(stored: Identity, wanted: Identity, translate: Translate = dict) -> tuple[Identity, list[str]]:
    """A cache's identity once shards and targets that only `wanted` has are added to it, and what else differs.

    The new shards come after the old ones, whatever their place in `wanted`. `translate`: see `differing_identities`.
    """
    old = {entry.name for entry in stored.shards}
    new = tuple(entry for entry in wanted.shards if entry.name not in old)
    targets = {name: settings for name, settings in wanted.targets.items() if name in stored.targets}
    kept = {entry.name: entry for entry in wanted.shards if entry.name in old}
    # In the cache's order: which shard a data set lists first is no difference once a cache may grow.
    shards = tuple(kept[entry.name] for entry in stored.shards if entry.name in kept)
    lines = differing_identities(stored, replace(wanted, shards=shards, targets=targets), translate)
    together = {name: stored.targets.get(name, settings) for name, settings in wanted.targets.items()}
    return replace(stored, shards=stored.shards + new, targets=together), lines


def missing_work(path: str | Path, manifest: Manifest, shard: str) -> list[tuple[range, tuple[str, ...]]]:
    """What a shard lacks, in the order in which it can be written: (views, targets), each one ShardWriter's.

    First the targets that its committed views lack, then the views that it lacks, in all targets.
    """
    attributes, targets = load_group(Path(path), shard), tuple(manifest.identity.targets)
    if attributes is None:
        return [(range(manifest.views), targets)]
    lacking = tuple(target for target in targets if target not in attributes["targets"])
    work = [(range(attributes["views"]), lacking), (range(attributes["views"], manifest.views), targets)]
    return [(views, names) for views, names in work if len(views) and names]


def open_group(
    folder: Path, files: Mapping[str, list], specs: Mapping[str, ArraySpec], clips: int, views: int, new: bool
) -> None:
    """Make a committed group ready for more: `views` in the arrays of `specs`, which are made if they are `new`.

    What a killed run left there is removed first.
    """
    remove_unlisted(folder, files)
    if new:
        remove_arrays(folder, specs)
        create_arrays(folder, specs, clips, views)
    for name in specs:
        resize_array(folder / name, views)


def close_group(folder: Path, committed: Mapping[str, Any], specs: Mapping[str, ArraySpec], new: bool) -> None:
    """Take back what was not committed. `committed`: the group's attributes as they are now."""
    remove_unlisted(folder, committed["files"])
    if new:
        remove_arrays(folder, specs)
    else:
        for name in specs:
            resize_array(folder / name, committed["views"])


def remove_arrays(folder: Path, specs: Mapping[str, ArraySpec]) -> None:
    """Of targets that are being added. They are visible only once the attributes list them."""
    for name in specs:
        shutil.rmtree(folder / name, ignore_errors=True)


def remove_unlisted(folder: Path, files: Mapping[str, list]) -> None:
    """Remove what a killed run left in a committed group: chunks which its attributes don't list, unfinished writes."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != METADATA and relative not in files:
            path.unlink()


class StoredViews:
    """The committed views of a group. Targets that are added must be of these."""

    def __init__(self, folder: Path, files: Mapping[str, list], views: range):
        store = VerifiedStore(folder, files)
        arrays = {
            n: zarr.open_array(store, path=n, mode="r", zarr_format=3) for n in ("frames", "box", "flip", "valid")
        }
        self.columns = {name: {v: np.asarray(array[:, v]) for v in views} for name, array in arrays.items()}

    def valid(self, view: int, rows: slice) -> np.ndarray:
        """bool [n]: the rows that have targets."""
        return self.columns["valid"][view][rows]

    def check(self, where: str, keys: Sequence[str], view: int, rows: slice, given: Mapping[str, np.ndarray]) -> None:
        """Raises ReskdError unless the views handed in are the stored ones, and every clip with targets is readable."""
        stored = self.valid(view, rows)
        lost = np.flatnonzero(stored & ~given["valid"])
        if len(lost):
            raise ReskdError(
                f"{where}, clip {keys[rows.start + lost[0]]!r}: it is unreadable now, but the cache has targets of it: "
                "restore the shard, or make a new cache."
            )
        for name in ("frames", "box", "flip"):
            if not np.array_equal(self.columns[name][view][rows][stored], np.asarray(given[name])[stored]):
                raise ReskdError(
                    f"{where}: {name} are not those stored: targets would be of other views. Make a new cache."
                )
