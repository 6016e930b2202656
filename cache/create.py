"""Making a cache's root, or taking up the one that is there."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.differences import Translate
from cache.errors import ReskdError
from cache.group import (
    array_specs,
    constant_files,
    load_manifest,
    write_attributes,
)
from cache.growth import grown
from cache.identity import CONSTANTS
from cache.manifest import Manifest
from cache.store import METADATA, file_digest, make_folders, write_atomically


def check_cache(path: str | Path, manifest: Manifest, translate: Translate = dict) -> Manifest:
    """The manifest that `create_cache` would leave; nothing is written.

    An existing cache must have the same identity, but shards and targets can be added; its planned views can be raised,
    and what is finished stays so.
    Raises ReskdError, naming every difference, where it hasn't, for fewer views, and for a folder of something else.
    """
    path = Path(path)
    if (path / METADATA).exists():
        stored = load_manifest(path)
        identity, lines = grown(stored.identity, manifest.identity, translate)
        if lines:
            raise ReskdError(
                f"{path} was made by another run:\n  " + "\n  ".join(lines) + "\nGive another output folder, "
                "go back to the settings of the cache, or delete it."
            )
        if manifest.views < stored.views:
            raise ReskdError(
                f"{path} is planned for {stored.views} views, this run wants {manifest.views}: views can be added, "
                f"not taken away. Ask for at least {stored.views}, or give another output folder."
            )
        array_specs(identity)
        return replace(stored, identity=identity, views=manifest.views, notes=stored.notes | manifest.notes)
    if path.exists() and (not path.is_dir() or any(not _ours(p) for p in path.iterdir())):
        raise ReskdError(f"{path} holds something else than a cache: give another output folder.")
    if manifest.views < 1:
        raise ReskdError(f"a cache needs at least 1 view, not {manifest.views}.")
    array_specs(manifest.identity)  # an unknown codec is refused before any work
    return manifest


def _ours(path: Path) -> bool:
    """Whether an entry of a folder without a manifest may be what a killed run left of a cache in the making."""
    if path.name in CONSTANTS and path.is_dir():
        return all(p.name == METADATA or p.name[:2] == "c." or p.name[:1] == "." for p in path.iterdir())
    return path.name.startswith(".")


def create_cache(
    path: str | Path,
    manifest: Manifest,
    constants: Mapping[str, np.ndarray] | None = None,
    translate: Translate = dict,
) -> Manifest:
    """Make an empty cache, or open the one that is there; returns the manifest that holds from now on.

    `constants`: the arrays at the root. They are written where they aren't there whole already, so that a rerun repairs
    them: they follow from the identity.
    Raises ReskdError as `check_cache` does.
    """
    path, manifest = Path(path), check_cache(path, manifest, translate)
    if constants:
        manifest = replace(manifest, constants=_write_constants(path, constants))
    if not (path / METADATA).exists() or load_manifest(path) != manifest:
        make_folders(path)
        write_attributes(path, manifest.to_json())
    return manifest


def _write_constants(path: Path, constants: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Before the manifest, which lists their digests; returns these."""
    digests = {}
    for name, data in constant_files(constants).items():
        digests[name], file = [len(data), hashlib.sha256(data).hexdigest()], path / name
        if not file.is_file() or file_digest(file) != digests[name]:
            make_folders(file.parent)
            write_atomically(file, data)
    return digests
