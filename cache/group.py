"""Reading and writing what the groups of a cache say: the manifest and the arrays of the root, the attributes of a shard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from cache.arrays import file_format, metadata_errors, open_for_reading
from cache.errors import ReskdError, StoreError
from cache.identity import CONSTANTS, Identity
from cache.json_file import read_json
from cache.manifest import FORMAT, Manifest, is_digest
from cache.store import METADATA, GroupStore, as_path, file_digest, side_by_side, write_atomically

TEMPORARY = ".tmp"  # a folder in the cache, for groups that are not committed yet
# In a store, a group of which a writer has taken over before anything was committed has these attributes.
UNCOMMITTED = {"committed": False}


def write_attributes(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a folder a zarr group with these attributes, atomically."""
    write_atomically(folder / METADATA, group_node(attributes))


def group_node(attributes: Mapping[str, Any]) -> bytes:
    """The metadata file of a zarr group with these attributes."""
    node = {"attributes": attributes, "node_type": "group", "zarr_format": 3}
    return json.dumps(node, sort_keys=True, separators=(",", ":")).encode()


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """The attributes of the zarr group `folder`; None if it is no group.

    Raises ReskdError for a damaged group, and StoreError if a store doesn't answer.
    """
    try:
        attributes = read_json(folder / METADATA, nan=True)["attributes"]
        if not isinstance(attributes, dict):
            raise TypeError("attributes are not an object")
        return attributes
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ReskdError(
            f"{folder / METADATA} is damaged ({error}): delete {folder} and run cache-teacher again."
        ) from error


def load_manifest(path: str | Path) -> Manifest:
    """The manifest of the cache at `path`.

    Raises ReskdError if there is no cache, or if its manifest is damaged or written by a version with another format.
    """
    path = as_path(path)
    attributes = read_attributes(path)
    if attributes is None:
        what = "there is no such folder" if not path.exists() else f"it has no {METADATA}"
        raise ReskdError(f"{path} is not a cache ({what}): run cache-teacher, or correct the path.")
    if "format" not in attributes:
        raise ReskdError(f"{path} is a zarr group, but not a cache of reskd: correct the path.")
    try:
        return Manifest.from_json(attributes)
    except ReskdError as error:
        raise ReskdError(f"{path}: {error}") from error


def load_group(path: Path, shard: str) -> dict[str, Any] | None:
    """The attributes of a shard's group; None if it isn't committed. Raises ReskdError for a damaged group."""
    attributes = read_attributes(path / shard)
    if attributes is None or attributes == UNCOMMITTED:
        return None
    wanted = {"format", "fingerprint", "keys", "keys_sha256", "quarantine", "fallbacks", "views", "targets", "files"}
    if attributes.get("format") != FORMAT or not wanted <= attributes.keys():
        raise ReskdError(
            f"{path / shard} is not a shard of a cache of format {FORMAT}: delete it and run cache-teacher again."
        )
    if fault := _fault(attributes):
        raise ReskdError(
            f"{path / shard / METADATA} is damaged: {fault}: delete {path / shard} and run cache-teacher again."
        )
    return attributes


def load_groups(path: Path, shards: Sequence[str]) -> list[dict[str, Any] | None]:
    """The attributes of several groups, as `load_group` reads them; several at once from a store."""
    return side_by_side(path, lambda shard: load_group(path, shard), shards)


def _fault(group: Mapping[str, Any]) -> str | None:
    """What is wrong with the types of a group's attributes; None if nothing is."""
    types = {"keys": list, "views": int, "targets": dict, "files": dict, "quarantine": dict, "fallbacks": dict}
    if bad := [name for name, kind in types.items() if not isinstance(group[name], kind)]:
        return f"{bad[0]} is {group[bad[0]]!r:.40}"
    texts = (group["keys"], group["quarantine"].values(), group["fallbacks"].values(), group["targets"].values())
    if not all(isinstance(text, str) for part in texts for text in part):
        return "keys, reasons or fingerprints that are no text"
    if not all(map(is_digest, group["files"].values())):
        return "files without a size and a sha256"
    if group["views"] < 1 or not {*group["quarantine"], *group["fallbacks"]} <= {*group["keys"]}:
        return f"{group['views']} views, or reasons for clips that the shard doesn't have"
    return None


def check_fingerprint(path: Path, identity: Identity, shard: str, attributes: Mapping[str, Any]) -> None:
    """Raises ReskdError for a group that was made with another teacher, policy, decoder, shard or encoding."""
    targets = attributes["targets"]
    differing = [t for t in targets if t in identity.targets and targets[t] != identity.target_fingerprint(t)]
    if attributes["fingerprint"] != identity.fingerprint(shard) or differing:
        raise ReskdError(
            f"{path / shard} was made by another run than the cache's manifest (another teacher, view policy, "
            "decoder, shard or encoding): delete that folder and run cache-teacher again."
        )


def constant_files(constants: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The files of the root's arrays (float32): path below the root -> content. The same values give the same bytes."""
    files = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, values in constants.items():
            zarr.create_array(
                MemoryStore(files),
                name=name,
                data=np.ascontiguousarray(values, dtype=np.float32),
                chunks=values.shape,
                fill_value=float("nan"),
                **file_format(itemsize=4),
            )
    return {name: buffer.to_bytes() for name, buffer in files.items() if name != METADATA}  # without zarr's own root


def read_constants(path: Path, manifest: Manifest, names: Sequence[str] = CONSTANTS) -> dict[str, np.ndarray]:
    """The root's arrays by name, float32: those of `names` that the cache has. Without stored features it has none.

    Raises ReskdError if one of their files is missing, or is not the one that was written.
    """
    listed = {file: digest for file, digest in manifest.constants.items() if file.partition("/")[0] in names}
    for name, found in zip(listed, side_by_side(path, lambda name: _digest(path / name), listed), strict=True):
        file = path / name
        if found != listed[name]:
            what = "is missing" if found is None else "is not the one that was written"
            raise ReskdError(
                f"{file}, which is needed to read the cache's features, {what}: run cache-teacher again, which restores it."
            )
    present = [file.removesuffix(f"/{METADATA}") for file in listed if file.endswith(METADATA)]
    store = GroupStore(path)
    with metadata_errors(path):
        return {name: np.asarray(open_for_reading(store, name)[:]) for name in present}


def _digest(file: Path) -> list | None:
    """[size in bytes, sha256] of a file; None if there is none."""
    return file_digest(file) if file.is_file() else None
