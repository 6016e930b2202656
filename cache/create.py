"""Making a new cache, or opening an existing one to add to it: the root's manifest and arrays."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.arrays import array_specs
from cache.differences import Translate, renewed_shards
from cache.errors import ReskdError
from cache.group import constant_files, load_manifest, write_attributes
from cache.growth import grown_identity
from cache.identity import CONSTANTS
from cache.manifest import Manifest
from cache.store import METADATA, file_digest, make_folders, write_atomically


def check_cache(path: str | Path, manifest: Manifest, translate: Translate = dict) -> Manifest:
    """The manifest that `create_cache` would write. Nothing is written.

    An existing cache must have the same identity, except for added shards and targets, and for shards whose frames newer
    rules changed. It can be planned for more views. What is finished stays finished. `translate`: see `differing_identities`.
    Raises ReskdError for another identity (the message names every difference), for fewer views, and for a folder that
    holds no cache.
    """
    path = Path(path)
    if (path / METADATA).exists():
        stored = load_manifest(path)
        identity, lines = grown_identity(stored.identity, manifest.identity, translate)
        if lines:
            raise ReskdError(
                f"{path} was made by another run:\n  " + "\n  ".join(lines) + "\nGive another output folder, "
                "go back to the settings of the cache, or delete the cache."
            )
        if manifest.views < stored.views:
            raise ReskdError(
                f"{path} is planned for {stored.views} views, this run wants {manifest.views}: views can be added, "
                f"not removed. Ask for at least {stored.views}, or give another output folder."
            )
        array_specs(identity)
        renewed = {entry.name for entry in renewed_shards(stored.identity.shards, manifest.identity.shards)}
        finished = next((i for i, e in enumerate(identity.shards) if e.name in renewed), stored.finalised_shards)
        return replace(
            stored,
            identity=identity,
            views=manifest.views,
            notes=stored.notes | manifest.notes,
            finalised_shards=min(finished, stored.finalised_shards),
            quarantine={shard: rows for shard, rows in stored.quarantine.items() if shard not in renewed},
        )
    if path.exists() and (not path.is_dir() or any(not _may_be_unfinished(p) for p in path.iterdir())):
        raise ReskdError(f"{path} holds something else than a cache: give another output folder.")
    if manifest.views < 1:
        raise ReskdError(f"a cache needs at least 1 view, this run wants {manifest.views}: raise views.")
    array_specs(manifest.identity)  # refuses an unknown codec before any work
    return manifest


def _may_be_unfinished(path: Path) -> bool:
    """Whether a killed run may have left this file or folder in a cache that has no manifest yet."""
    if path.name in CONSTANTS and path.is_dir():
        return all(p.name == METADATA or p.name[:2] == "c." or p.name[:1] == "." for p in path.iterdir())
    return path.name.startswith(".")


def create_cache(
    path: str | Path,
    manifest: Manifest,
    constants: Mapping[str, np.ndarray] | None = None,
    translate: Translate = dict,
) -> Manifest:
    """Make an empty cache, or prepare an existing one to be added to. Returns the manifest, as it is stored now.

    `constants`: the arrays at the root. They depend on the identity alone, so a file that is missing or damaged is written
    again.
    Raises ReskdError as `check_cache` does.
    """
    path, wanted = Path(path), manifest.identity
    manifest = check_cache(path, manifest, translate)
    stored = load_manifest(path) if (path / METADATA).exists() else None
    for entry in renewed_shards(stored.identity.shards, wanted.shards) if stored else ():
        shutil.rmtree(path / entry.name, ignore_errors=True)  # before the manifest: a rerun finds it missing
    if constants:
        manifest = replace(manifest, constants={**manifest.constants, **write_constants(path, constants)})
    if stored != manifest:
        make_folders(path)
        write_attributes(path, manifest.to_json())
    return manifest


def write_constants(path: Path, constants: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Write arrays of the root. Returns file -> [size, sha256], which the manifest lists: it must be written later."""
    digests = {}
    for name, data in constant_files(constants).items():
        digests[name], file = [len(data), hashlib.sha256(data).hexdigest()], path / name
        if not file.is_file() or file_digest(file) != digests[name]:
            make_folders(file.parent)
            write_atomically(file, data)
    return digests
