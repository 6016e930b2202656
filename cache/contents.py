"""What a cache contains and how much disk it takes: figures for people, for finished and unfinished caches."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from cache.arrays import array_specs
from cache.errors import ReskdError, StoreError
from cache.group import load_group, load_groups
from cache.identity import CONSTANTS
from cache.manifest import Manifest
from cache.store import METADATA, side_by_side

SHOWN = 3  # how many clips in quarantine are named


def summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """What inspect-cache tells about a cache without its data set. A damaged group counts as not committed."""
    identity = manifest.identity
    shards = [entry.name for entry in identity.shards]
    groups = dict(zip(shards, side_by_side(path, lambda shard: _whole_group(path, shard), shards), strict=True))
    keys = {name: group["keys"] for name, group in groups.items() if group}
    quarantined = [f"{shard}/{keys[shard][row] if shard in keys else row}: {reason}"
             for shard, rows in manifest.quarantine.items() for row, reason in rows.items()]  # fmt: skip
    return {
        "path": str(path),
        "identity": {k: v for k, v in identity.to_json().items() if k not in ("shards", "classes")},
        "classes": len(identity.classes),
        "views": manifest.views,
        "finished_views": manifest.finalised,
        "shards": len(identity.shards),
        "finished_shards": manifest.finalised_shards,
        "clips": sum(entry.clips for entry in identity.shards),
        "clip_views": sum(len(group["keys"]) * group["views"] for group in groups.values() if group),
        "bytes": sizes_on_disk(path, manifest, groups),
        "packages": manifest.packages,
        "notes": manifest.notes,
        "quarantine": {"clips": len(quarantined), "first": quarantined[:SHOWN]},
    }


def _whole_group(path: Path, shard: str) -> dict[str, Any] | None:
    try:
        return load_group(path, shard)
    except StoreError:
        raise
    except ReskdError:
        return None


def sizes_on_disk(path: Path, manifest: Manifest, groups: Mapping[str, Mapping | None]) -> dict[str, Any]:
    """Bytes on disk: of each array, in total and for each committed clip·view; of the root's arrays; of the other files."""
    sizes, shards = Counter(), {entry.name for entry in manifest.identity.shards}
    specs = array_specs(manifest.identity)
    for relative, size in _files(path):
        shard, array = relative.parent.parent.as_posix(), relative.parent.name
        kind = "other"
        if relative.parts[0] in CONSTANTS:
            kind = "constants"
        elif relative.name == METADATA:
            kind = "metadata"
        elif shard in shards and array in specs:
            kind = array
        sizes[kind] += size
    target_of = {name: t for t in manifest.identity.targets for name in array_specs(manifest.identity, [t])}
    clip_views = Counter()
    for group in groups.values():
        for name in specs if group else ():
            if name not in target_of or target_of[name] in group["targets"]:
                clip_views[name] += len(group["keys"]) * group["views"]
    return {
        "total": sum(sizes.values()),
        "by_array": {name: sizes[name] for name in specs},
        "of_clip_view": {name: sizes[name] / clip_views[name] for name in specs if clip_views[name]},
        **{kind: sizes[kind] for kind in ("constants", "metadata", "other")},
    }


def _files(path: Path) -> Iterator[tuple[PurePath, int]]:
    """Every file below a folder: its path below it, and its size in bytes."""
    if isinstance(path, Path):
        yield from ((file.relative_to(path), file.stat().st_size) for file in path.rglob("*") if file.is_file())
    else:
        yield from ((PurePosixPath(name), size) for name, size in path.files().items())


def find_clip(path: Path, manifest: Manifest, wanted: str) -> tuple[str, int]:
    """Shard and row of the clip that `wanted` names, as KEY or SHARD/KEY.

    Raises ReskdError if no clip has this name (the message offers similar names), or if several shards have such a clip.
    """
    matches, known = [], []
    shards = [entry.name for entry in manifest.identity.shards]
    for shard, group in zip(shards, load_groups(path, shards), strict=True):
        for row, key in enumerate(group["keys"] if group else ()):
            known.append((shard, key))
            if wanted in (key, f"{shard}/{key}"):
                matches.append((shard, row))
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(f"{shard}/{wanted}" for shard, _ in matches[:3])
        raise ReskdError(f"{path}: clip {wanted!r} is in {len(matches)} shards: name it as SHARD/KEY, such as {names}")
    forms = {form for shard, key in known for form in (key, f"{shard}/{key}")}
    similar = difflib.get_close_matches(wanted, forms, n=3, cutoff=0.5)
    hint = (
        f"similar names are {', '.join(similar)}"
        if similar
        else f"the cache has {len(known)} clips, such as {known[0][1]}"
        if known
        else "the cache is empty"
    )
    raise ReskdError(f"{path}: no clip {wanted!r} in this cache; {hint}")
