"""What is in a cache, and what it takes on disk: figures for people, of whole and of unfinished caches."""

import difflib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.group import array_specs, load_group
from cache.identity import CONSTANTS
from cache.manifest import Manifest
from cache.store import METADATA

REASONS = 3  # clips in quarantine that are named


def summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """All of the result that the cache alone knows. A group that is damaged counts as not committed."""
    identity, groups = manifest.identity, {}
    for entry in identity.shards:
        try:
            groups[entry.name] = load_group(path, entry.name)
        except ReskdError:
            groups[entry.name] = None
    keys = {name: group["keys"] for name, group in groups.items() if group}
    named = [f"{shard}/{keys[shard][row] if shard in keys else row}: {reason}"
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
        "quarantine": {"clips": len(named), "first": named[:REASONS]},
    }


def sizes_on_disk(path: Path, manifest: Manifest, groups: Mapping[str, Mapping | None]) -> dict[str, Any]:
    """Of the files on disk: chunks by array, in all and for each committed clip·view; the root's arrays; the rest."""
    sizes, shards = Counter(), {entry.name for entry in manifest.identity.shards}
    specs = array_specs(manifest.identity)
    for file in path.rglob("*"):
        if not file.is_file():
            continue
        relative = file.relative_to(path)
        shard, array = relative.parent.parent.as_posix(), relative.parent.name
        kind = "other"
        if relative.parts[0] in CONSTANTS:
            kind = "constants"
        elif file.name == METADATA:
            kind = "metadata"
        elif shard in shards and array in specs:
            kind = array
        sizes[kind] += file.stat().st_size
    of_target = {name: t for t in manifest.identity.targets for name in array_specs(manifest.identity, [t])}
    count = Counter()
    for group in groups.values():
        for name in specs if group else ():
            if name not in of_target or of_target[name] in group["targets"]:
                count[name] += len(group["keys"]) * group["views"]
    return {
        "total": sum(sizes.values()),
        "by_array": {name: sizes[name] for name in specs},
        "of_clip_view": {name: sizes[name] / count[name] for name in specs if count[name]},
        **{kind: sizes[kind] for kind in ("constants", "metadata", "other")},
    }


def find_clip(path: Path, manifest: Manifest, wanted: str) -> tuple[str, int]:
    """Shard and row of a clip by KEY or SHARD/KEY. Raises ReskdError where there is none, naming near ones, or two."""
    found, known = [], []
    for entry in manifest.identity.shards:
        group = load_group(path, entry.name)
        for row, key in enumerate(group["keys"] if group else ()):
            known.append((entry.name, key))
            if wanted in (key, f"{entry.name}/{key}"):
                found.append((entry.name, row))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{shard}/{wanted}" for shard, _ in found[:3])
        raise ReskdError(f"{path}: clip {wanted!r} is in {len(found)} shards: give one as SHARD/KEY, such as {names}")
    forms = {form for shard, key in known for form in (key, f"{shard}/{key}")}
    near = difflib.get_close_matches(wanted, forms, n=3, cutoff=0.5)
    hint = (
        f"near are {', '.join(near)}"
        if near
        else f"{len(known)} clips, such as {known[0][1]}"
        if known
        else "it is empty"
    )
    raise ReskdError(f"{path}: no clip {wanted!r} in it; {hint}")
