"""Declaring a cache finished, so that students may read it."""

import shutil
from dataclasses import replace
from pathlib import Path

from cache.errors import ReskdError
from cache.group import TEMPORARY, check_fingerprint, load_group, load_manifest, write_attributes
from cache.growth import lacking
from cache.manifest import Manifest
from cache.teacher_time import close_time_logs, with_teacher_time


def finalise(path: str | Path) -> Manifest:
    """Declare the planned views finished. The root's manifest takes in the quarantine of all shards and the teacher time.

    The manifest is replaced atomically. Raises ReskdError if a shard lacks views, or was made by another run.
    """
    path = Path(path)
    manifest = load_manifest(path)
    quarantine, unfinished = {}, []
    for entry in manifest.identity.shards:
        attributes = load_group(path, entry.name)
        if work := lacking(attributes, manifest):
            parts = "; ".join(f"{len(views)} views of {' and '.join(targets)}" for views, targets in work)
            unfinished.append(f"{entry.name} ({parts})")
            continue
        check_fingerprint(path, manifest.identity, entry.name, attributes)
        rows = {key: row for row, key in enumerate(attributes["keys"])}
        if attributes["quarantine"]:
            quarantine[entry.name] = {rows[key]: reason for key, reason in attributes["quarantine"].items()}
    if unfinished:
        raise ReskdError(
            f"{path} is not finished: {len(unfinished)} of {len(manifest.identity.shards)} shards lack some of "
            f"{manifest.views} views: {', '.join(unfinished[:3])}{' …' if len(unfinished) > 3 else ''}. "
            "Run cache-teacher again: it computes what is missing."
        )
    manifest = replace(
        manifest,
        finalised=manifest.views,
        finalised_shards=len(manifest.identity.shards),
        finalised_targets=tuple(manifest.identity.targets),
        quarantine=quarantine,
        notes=with_teacher_time(path, manifest.notes),
    )
    write_attributes(path, manifest.to_json())
    close_time_logs(path)
    shutil.rmtree(path / TEMPORARY, ignore_errors=True)
    return manifest
