"""How a cache grows in place: what it lacks, and how a committed group takes more views or another target.

More views: first the arrays' shapes change, then the new chunk files are written, then the group's attributes. Another
target for the stored views: first its arrays are written, then the group's attributes.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.arrays import ArraySpec, create_arrays, metadata_errors, open_for_reading, resize_array
from cache.differences import Translate, differing_identities, renewed_shards
from cache.errors import ReskdError
from cache.group import load_group
from cache.identity import Identity
from cache.manifest import Manifest
from cache.store import METADATA, VerifiedStore


def grown_identity(stored: Identity, wanted: Identity, translate: Translate = dict) -> tuple[Identity, list[str]]:
    """The `stored` identity with the shards and targets that only `wanted` has, and a line for every other difference.

    The new shards come after the old ones, whatever their place in `wanted`. Renewed shards have their new entries.
    `translate`: see `differing_identities`.
    """
    old_names = {entry.name for entry in stored.shards}
    new_shards = tuple(entry for entry in wanted.shards if entry.name not in old_names)
    old_targets = {name: settings for name, settings in wanted.targets.items() if name in stored.targets}
    renewed = {entry.name: entry for entry in renewed_shards(stored.shards, wanted.shards)}
    kept = {entry.name: entry for entry in wanted.shards if entry.name in old_names}
    # Compared in the cache's order: a data set may list its shards in any order.
    old_shards = tuple(kept[entry.name] for entry in stored.shards if entry.name in kept)
    stored = replace(stored, shards=tuple(renewed.get(entry.name, entry) for entry in stored.shards))
    lines = differing_identities(stored, replace(wanted, shards=old_shards, targets=old_targets), translate)
    all_targets = {name: stored.targets.get(name, settings) for name, settings in wanted.targets.items()}
    return replace(stored, shards=stored.shards + new_shards, targets=all_targets), lines


def missing_work(path: str | Path, manifest: Manifest, shard: str) -> list[tuple[range, tuple[str, ...]]]:
    """What a shard lacks, in the order of writing: pairs (views, targets), one ShardWriter for each pair.

    First come the targets that the committed views lack, then the missing views in all targets.
    """
    return lacking(load_group(Path(path), shard), manifest)


def lacking(attributes: Mapping[str, Any] | None, manifest: Manifest) -> list[tuple[range, tuple[str, ...]]]:
    """`missing_work` of a group with these attributes; None: it isn't committed."""
    targets = tuple(manifest.identity.targets)
    if attributes is None:
        return [(range(manifest.views), targets)]
    absent = tuple(target for target in targets if target not in attributes["targets"])
    work = [(range(attributes["views"]), absent), (range(attributes["views"], manifest.views), targets)]
    return [(views, names) for views, names in work if len(views) and names]


def prepare_growth(
    folder: Path, files: Mapping[str, list], specs: Mapping[str, ArraySpec], clips: int, views: int, new_arrays: bool
) -> None:
    """Prepare a committed group for writing: the arrays of `specs` get room for `views` views.

    `files`: the chunk files that are committed. `new_arrays`: the arrays are those of a new target, and are made.
    What a killed run left is removed first.
    """
    _remove_unlisted(folder, files)
    if new_arrays:
        _remove_arrays(folder, specs)
        create_arrays(folder, specs, clips, views)
    for name in specs:
        resize_array(folder / name, views)


def undo_growth(folder: Path, attributes: Mapping[str, Any], specs: Mapping[str, ArraySpec], new_arrays: bool) -> None:
    """Remove what `prepare_growth` and a writer added and didn't commit. `attributes`: the group's, as committed."""
    _remove_unlisted(folder, attributes["files"])
    if new_arrays:
        _remove_arrays(folder, specs)
    else:
        for name in specs:
            resize_array(folder / name, attributes["views"])


def _remove_arrays(folder: Path, specs: Mapping[str, ArraySpec]) -> None:
    """Remove the arrays of a target that is being added. No reader sees them, since the attributes don't list them yet."""
    for name in specs:
        shutil.rmtree(folder / name, ignore_errors=True)


def _remove_unlisted(folder: Path, files: Mapping[str, list]) -> None:
    """Remove what a killed run left in a committed group: unfinished files, and chunks that the attributes don't list."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != METADATA and relative not in files:
            path.unlink()


class StoredViews:
    """The committed views of a group. A target that is added must be computed from the same views."""

    def __init__(self, folder: Path, files: Mapping[str, list], views: range):
        store = VerifiedStore(folder, files)
        with metadata_errors(folder):
            arrays = {name: open_for_reading(store, name) for name in ("frames", "box", "flip", "valid")}
        self.columns = {name: {v: np.asarray(array[:, v]) for v in views} for name, array in arrays.items()}

    def valid(self, view: int, rows: slice) -> np.ndarray:
        """bool [n]: which rows have targets."""
        return self.columns["valid"][view][rows]

    def check(self, where: str, keys: Sequence[str], view: int, rows: slice, given: Mapping[str, np.ndarray]) -> None:
        """Raises ReskdError unless the views `given` equal the stored ones, and every clip that has targets can be decoded.

        `where` names the view in the message.
        """
        valid = self.valid(view, rows)
        lost = np.flatnonzero(valid & ~given["valid"])
        if len(lost):
            raise ReskdError(
                f"{where}, clip {keys[rows.start + lost[0]]!r}: it is unreadable now, but the cache has its targets: "
                "restore the shard, or make a new cache."
            )
        for name in ("frames", "box", "flip"):
            if not np.array_equal(self.columns[name][view][rows][valid], np.asarray(given[name])[valid]):
                raise ReskdError(
                    f"{where}: {name} are not those stored, so the targets would belong to other views. Make a new cache."
                )
