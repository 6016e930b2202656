"""Reading and making the parts of a cache: the root's manifest and arrays, a shard's group with its attributes and arrays."""

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

TEMPORARY = ".tmp"  # a folder in the cache, for groups that are not committed yet


def write_attributes(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a folder a zarr group with these attributes, atomically."""
    node = {"attributes": attributes, "node_type": "group", "zarr_format": 3}
    write_atomically(folder / METADATA, json.dumps(node, sort_keys=True, separators=(",", ":")).encode())


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """The attributes of the zarr group `folder`; None if it is no group. Raises ReskdError for a damaged group."""
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
    """The manifest of the cache at `path`.

    Raises ReskdError if there is no cache, or if its manifest is damaged or written by a version with another format.
    """
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
    """The attributes of a shard's group; None if it isn't committed. Raises ReskdError for a damaged group."""
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
    """Raises ReskdError for a group that was made with another teacher, policy, decoder, shard or encoding."""
    targets = attributes["targets"]
    differing = [t for t in targets if t in identity.targets and targets[t] != identity.target_fingerprint(t)]
    if attributes["fingerprint"] != identity.fingerprint(shard) or differing:
        raise ReskdError(
            f"{path / shard} was made by another run than the cache's manifest (another teacher, view policy, "
            "decoder, shard or encoding): delete that folder and run cache-teacher again."
        )


@dataclass(frozen=True)
class ArraySpec:
    """One array of a group: [N, V, *tail], in chunks of one view and `rows` rows (None: all rows).

    The tail of feature maps is (d, T', g, g'). After a ReLU most channels are 0 almost everywhere, so zstd files are half
    as large when maps are stored channel by channel.
    """

    tail: tuple[int, ...]
    dtype: str
    fill: Any
    rows: int | None = None


def array_specs(identity: Identity, targets: Sequence[str] | None = None) -> dict[str, ArraySpec]:
    """The arrays of a shard's group, by name: all of them, or those of `targets` alone."""
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
        **_file_format(np.dtype(spec.dtype).itemsize),
    )


def _file_format(itemsize: int) -> dict[str, Any]:
    """How the values of every array of a cache become chunk files; `itemsize` in bytes."""
    return {
        "filters": None,
        # Byte shuffle is set, since zarr's default for one-byte items is bit shuffle. Level 1 is fast: maps are large.
        "compressors": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=itemsize), Crc32cCodec()],
        # All chunks of an array lie in one folder: with "/", each chunk of a map would lie five folders deep.
        "chunk_key_encoding": {"name": "default", "separator": "."},
        "zarr_format": 3,
    }


def chunk_files(spec: ArraySpec, clips: int, views: range) -> list[str]:
    """Names of an array's chunk files that hold `views`."""
    blocks = range(-(-clips // min(spec.rows or clips, clips)))
    return [".".join(map(str, ("c", block, view, *(0 for _ in spec.tail)))) for block in blocks for view in views]


def compressed_bytes(values: np.ndarray) -> int:
    """Bytes on disk of values [N, ...], if a cache stores them: in blocks of rows, with byte shuffle, zstd and checksum.

    Values with 5 axes are feature maps [N,T',g,g',d], and are stored channel by channel.
    """
    files: dict[str, Any] = {}
    values = np.moveaxis(values, -1, 1) if values.ndim == 5 else values
    spec = ArraySpec(values.shape[1:], str(values.dtype), 0, BLOCK)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = _create(MemoryStore(files), "values", spec, len(values), 1)
        array[:, 0] = values
    return sum(len(buffer) for name, buffer in files.items() if not name.endswith(METADATA))


def resize_array(folder: Path, views: int) -> None:
    """Set the number of views of an array. Raises ReskdError if its metadata are damaged.

    zarr's own resize isn't durable, and the committed views can't be read without this file.
    """
    try:
        node = json.loads((folder / METADATA).read_bytes())
        changed, node["shape"][1] = node["shape"][1] != views, views
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ReskdError(
            f"{folder / METADATA} is damaged: delete {folder.parent} and run cache-teacher again."
        ) from error
    if changed:
        write_atomically(folder / METADATA, json.dumps(node, indent=2).encode())


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
                **_file_format(itemsize=4),
            )
    return {name: buffer.to_bytes() for name, buffer in files.items() if name != METADATA}  # without zarr's own root


def read_constants(path: Path, manifest: Manifest, names: Sequence[str] = CONSTANTS) -> dict[str, np.ndarray]:
    """The root's arrays by name, float32: those of `names` that the cache has. Without stored features it has none.

    Raises ReskdError if one of their files is missing, or is not the one that was written.
    """
    listed = {file: digest for file, digest in manifest.constants.items() if file.partition("/")[0] in names}
    for name, digest in listed.items():
        file = path / name
        if not file.is_file() or file_digest(file) != digest:
            what = "is not the one that was written" if file.is_file() else "is missing"
            raise ReskdError(
                f"{file}, which is needed to read the cache's features, {what}: run cache-teacher again, which restores it."
            )
    present = [file.removesuffix(f"/{METADATA}") for file in listed if file.endswith(METADATA)]
    store = LocalStore(path, read_only=True)
    return {name: np.asarray(open_for_reading(store, name)[:]) for name in present}


def open_for_reading(store: LocalStore, name: str) -> zarr.Array:
    return zarr.open_array(store, path=name, mode="r", zarr_format=3)


def open_for_writing(folder: Path, name: str) -> zarr.Array:
    """An array that writes all its chunks. By default, zarr writes no file for a chunk of fill values."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(LocalStore(folder), path=name, mode="r+", zarr_format=3)
