"""What lies inside a cache: the root's manifest, and a shard's group with its attributes and arrays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from cache.codecs import codec_of
from cache.errors import ReskdError
from cache.identity import CONSTANTS, Identity
from cache.manifest import FORMAT, Manifest
from cache.store import METADATA, file_digest, write_atomically
from cache.view import BLOCK

TEMPORARY = ".tmp"  # inside the cache: groups that are not committed yet


def write_attributes(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a folder a zarr group with these attributes, atomically."""
    node = {"attributes": attributes, "node_type": "group", "zarr_format": 3}
    write_atomically(folder / METADATA, json.dumps(node, sort_keys=True, separators=(",", ":")).encode())


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """The attributes of a zarr group, None where there is no group. Raises ReskdError for a damaged one."""
    try:
        text = (folder / METADATA).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        attributes = json.loads(text)["attributes"]
        if not isinstance(attributes, dict):
            raise TypeError("attributes are not an object")
        return attributes
    except (ValueError, KeyError, TypeError) as error:
        raise ReskdError(
            f"{folder / METADATA} is damaged ({error}): delete {folder} and run cache-teacher again."
        ) from error


def load_manifest(path: str | Path) -> Manifest:
    """The manifest of the cache at `path`. Raises ReskdError where there is none, or one of another format."""
    path = Path(path)
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
    """Attributes of a shard's group, None where it isn't committed. Raises ReskdError for a damaged one."""
    attributes = read_attributes(path / shard)
    if attributes is None:
        return None
    wanted = {"format", "fingerprint", "keys", "keys_sha256", "quarantine", "fallbacks", "views", "targets", "files"}
    if attributes.get("format") != FORMAT or not wanted <= attributes.keys():
        raise ReskdError(
            f"{path / shard} is not a shard of a cache of format {FORMAT}: delete it and run cache-teacher again."
        )
    return attributes


def check_fingerprint(path: Path, identity: Identity, shard: str, attributes: Mapping[str, Any]) -> None:
    """Raises ReskdError for a group that another teacher, policy, decoder, shard or encoding made."""
    targets = attributes["targets"]
    other = [t for t in targets if t in identity.targets and targets[t] != identity.target_fingerprint(t)]
    if attributes["fingerprint"] != identity.fingerprint(shard) or other:
        raise ReskdError(
            f"{path / shard} was made by another run than the cache's manifest says (another teacher, view policy, "
            "decoder, shard or encoding): delete that folder and run cache-teacher again."
        )


@dataclass(frozen=True)
class ArraySpec:
    """One array of a group: [N, V, *tail], in chunks of one view and `rows` rows (None: all).

    The tail of maps is (d, T', g, g'): after a ReLU most channels are 0 nearly everywhere, and channel by channel zstd
    makes half as much of them as position by position.
    """

    tail: tuple[int, ...]
    dtype: str
    fill: Any
    rows: int | None = None


def array_specs(identity: Identity, targets: Sequence[str] | None = None) -> dict[str, ArraySpec]:
    """Every array of a shard's group, by name; of `targets`, theirs alone."""
    views = {
        "frames": ArraySpec((identity.policy.num_frames,), "int32", -1),
        "box": ArraySpec((4,), "float32", float("nan")),
        "flip": ArraySpec((), "bool", False),
        "valid": ArraySpec((), "bool", False),
    }
    specs = views if targets is None else {}
    for target in identity.targets if targets is None else targets:
        settings = identity.targets[target]
        tail = (settings["width"], *settings.get("grid", ()))
        rows = BLOCK if target == "features" else None
        for name, stored in codec_of(target, settings["codec"]).arrays.items():
            specs[name] = ArraySpec(() if stored.per_row else tail, stored.dtype, stored.fill, rows)
    return specs


def create_arrays(folder: Path, specs: Mapping[str, ArraySpec], clips: int, views: int) -> None:
    """Make the empty arrays of a group of `clips` rows and `views` views."""
    for name, spec in specs.items():
        _create(LocalStore(folder), name, spec, clips, views)


def _create(store: LocalStore | MemoryStore, name: str, spec: ArraySpec, clips: int, views: int) -> zarr.Array:
    return zarr.create_array(
        store,
        name=name,
        shape=(clips, views, *spec.tail),
        chunks=(min(spec.rows or clips, clips), 1, *spec.tail),
        dtype=spec.dtype,
        fill_value=spec.fill,
        filters=None,
        # Explicit byte shuffle: left to itself, zarr takes bits for single bytes. Level 1: features are many.
        compressors=[
            BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=np.dtype(spec.dtype).itemsize),
            Crc32cCodec(),
        ],
        # One flat folder an array: with "/", each chunk of a map would lie five folders deep.
        chunk_key_encoding={"name": "default", "separator": "."},
        zarr_format=3,
    )


def compressed_bytes(values: np.ndarray) -> int:
    """Bytes on disk of values [N, ...] stored as a cache's are: blocks of rows, byte shuffle, zstd, checksum; maps
    [N,T',g,g',d] channel by channel."""
    files: dict[str, Any] = {}
    values = np.moveaxis(values, -1, 1) if values.ndim == 5 else values
    spec = ArraySpec(values.shape[1:], str(values.dtype), 0, BLOCK)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = _create(MemoryStore(files), "values", spec, len(values), 1)
        array[:, 0] = values
    return sum(len(buffer) for name, buffer in files.items() if not name.endswith(METADATA))


def resize_array(folder: Path, views: int) -> None:
    """Set the number of views of an array. Raises ReskdError where its metadata is damaged.

    Not by zarr, whose writes are not durable: the committed views hang on this file too.
    """
    try:
        node = json.loads((folder / METADATA).read_bytes())
        grown, node["shape"][1] = node["shape"][1] != views, views
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ReskdError(
            f"{folder / METADATA} is damaged: delete {folder.parent} and run cache-teacher again."
        ) from error
    if grown:
        write_atomically(folder / METADATA, json.dumps(node, indent=2).encode())


def constant_files(constants: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The files, by their names below the root, of its arrays, float32. The same values give the same bytes."""
    files = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, values in constants.items():
            zarr.create_array(
                MemoryStore(files),
                name=name,
                data=np.ascontiguousarray(values, dtype=np.float32),
                chunks=values.shape,
                fill_value=float("nan"),
                filters=None,
                compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=4), Crc32cCodec()],
                chunk_key_encoding={"name": "default", "separator": "."},
                zarr_format=3,
            )
    return {name: buffer.to_bytes() for name, buffer in files.items() if name != METADATA}  # zarr makes the root, too


def read_constants(path: Path, manifest: Manifest, names: Sequence[str] = CONSTANTS) -> dict[str, np.ndarray]:
    """Those of the arrays at the root that are there, by name; none where no features are stored.

    Raises ReskdError for a file of them that is missing or not the one written.
    """
    listed = {file: digest for file, digest in manifest.constants.items() if file.partition("/")[0] in names}
    for name, digest in listed.items():
        file = path / name
        if not file.is_file() or file_digest(file) != digest:
            what = "is not the one that was written" if file.is_file() else "is missing"
            raise ReskdError(
                f"{file}, by which the cache's features are read, {what}: run cache-teacher again, which restores it."
            )
    found = [file.removesuffix(f"/{METADATA}") for file in listed if file.endswith(METADATA)]
    store = LocalStore(path, read_only=True)
    return {name: np.asarray(zarr.open_array(store, path=name, mode="r", zarr_format=3)[:]) for name in found}


def open_for_writing(folder: Path, name: str) -> zarr.Array:
    """An array whose chunks are all written, those that equal the fill value too (else they would be missing files)."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(LocalStore(folder), path=name, mode="r+", zarr_format=3)
