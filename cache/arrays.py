"""The arrays of a shard's group: their shapes, chunks and files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from cache.codecs import codec_of
from cache.errors import ReskdError, StoreError
from cache.identity import Identity
from cache.json_file import parse_json, read_json, read_limited
from cache.store import METADATA, GroupStore, write_atomically
from cache.view import BLOCK

CODEC_NAMES = ["bytes", "blosc", "crc32c"]  # of every array, in this order
COMPRESSION = {"cname": "zstd", "clevel": 1}  # a fast level: maps are large
# Bytes that Blosc hands to zstd at once, in the arrays of shards. In its own choice, 32 KiB, maps are written a sixth and read a
# third slower. The small arrays at the root keep that choice, so that their bytes are those of older versions.
BLOCKSIZE = 2**19


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
        **file_format(np.dtype(spec.dtype).itemsize, BLOCKSIZE),
    )


def file_format(itemsize: int, blocksize: int = 0) -> dict[str, Any]:
    """How the values of every array of a cache become chunk files; `itemsize` in bytes. `blocksize` 0: Blosc's choice."""
    # Byte shuffle is set, since zarr's default for one-byte items is bit shuffle.
    blosc = BloscCodec(**COMPRESSION, shuffle="shuffle", typesize=itemsize, blocksize=blocksize)
    return {
        "filters": None,
        "compressors": [blosc, Crc32cCodec()],
        # All chunks of an array lie in one folder: with "/", each chunk of a map would lie five folders deep.
        "chunk_key_encoding": {"name": "default", "separator": "."},
        "zarr_format": 3,
    }


def encode_chunk(array: zarr.Array, values: np.ndarray) -> tuple[bytes, bytes]:
    """The chunk file of a full block of rows, in two parts: as zarr makes it, without its copies, in any thread.

    `values`: in one piece, in the array's dtype. An array of an older cache has compression of its own.
    """
    told = array.compressors[0]
    shuffle = getattr(Blosc, told.shuffle.value.upper())
    data = Blosc(told.cname.value, told.clevel, shuffle, told.blocksize, typesize=told.typesize).encode(values)
    return data, google_crc32c.value(data).to_bytes(4, "little")


def chunk_files(spec: ArraySpec, clips: int, views: range) -> list[str]:
    """Names of an array's chunk files that hold `views`."""
    blocks = range(-(-clips // min(spec.rows or clips, clips)))
    return [chunk_file(spec, block, view) for block in blocks for view in views]


def chunk_file(spec: ArraySpec, block: int, view: int) -> str:
    """The name of the chunk file of one block of rows in one view."""
    return ".".join(map(str, ("c", block, view, *(0 for _ in spec.tail))))


def compressed_bytes(values: np.ndarray) -> int:
    """Bytes on disk of values [N, ...], if a cache stores them: in blocks of rows, with byte shuffle, zstd and checksum.

    Values with 5 axes are feature maps [N,T',g,g',d], and are stored channel by channel.
    """
    return sum(len(chunk) for chunk in compressed_chunks(np.moveaxis(values, -1, 1) if values.ndim == 5 else values))


def compressed_chunks(values: np.ndarray) -> list[Any]:
    """The chunk files of values [N, ...], which are as stored: their bytes, in blocks of rows."""
    files: dict[str, Any] = {}
    spec = ArraySpec(values.shape[1:], str(values.dtype), 0, BLOCK)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = _create(MemoryStore(files), "values", spec, len(values), 1)
        array[:, 0] = values
    return [buffer.as_buffer_like() for name, buffer in files.items() if not name.endswith(METADATA)]


def resize_array(folder: Path, views: int) -> None:
    """Set the number of views of an array. Raises ReskdError if its metadata are damaged.

    zarr's own resize isn't durable, and the committed views can't be read without this file.
    """
    try:
        node = read_json(folder / METADATA, nan=True)
        changed, node["shape"][1] = node["shape"][1] != views, views
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ReskdError(
            f"{folder / METADATA} is damaged: delete {folder.parent} and run cache-teacher again."
        ) from error
    if changed:
        write_atomically(folder / METADATA, json.dumps(node, indent=2).encode())


def open_for_reading(store: GroupStore, name: str) -> zarr.Array:
    """Raises ValueError for metadata of other codecs or chunk files than a cache has; zarr raises many types for others."""
    _check_format(store.root / name, store.metadata(name))
    return zarr.open_array(store, path=name, mode="r", zarr_format=3)


def open_for_writing(folder: Path, name: str) -> zarr.Array:
    """An array that writes all its chunks. By default, zarr writes no file for a chunk of fill values."""
    with metadata_errors(folder):
        _check_format(folder / name, read_limited(folder / name / METADATA))
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(LocalStore(folder), path=name, mode="r+", zarr_format=3)


@contextmanager
def metadata_errors(folder: Path) -> Iterator[None]:
    """Turns the ValueError of damaged metadata into a ReskdError that names the group's folder."""
    try:
        yield
    except StoreError:
        raise
    except ValueError as error:
        raise ReskdError(
            f"{folder}: an array's {METADATA} is damaged ({error}): delete {folder} and run cache-teacher again."
        ) from error


def _check_format(folder: Path, metadata: bytes) -> None:
    """Raises ValueError unless an array's metadata name the codecs and chunk files of `file_format`, and no others.

    zarr looks up any codec that is installed; and a folder that is a link would be written through.
    """
    node = parse_json(metadata, nan=True)
    parts = node if isinstance(node, dict) else {}
    codecs = parts.get("codecs") if isinstance(parts.get("codecs"), list) else []
    names = [codec.get("name") if isinstance(codec, dict) else codec for codec in codecs]
    keys = {"name": "default", "configuration": {"separator": "."}}
    if names != CODEC_NAMES or parts.get("chunk_key_encoding") != keys or parts.get("storage_transformers"):
        raise ValueError(f"other codecs ({names!r:.100}) or names of chunk files than a cache has")
    if isinstance(folder, Path) and folder.is_symlink():
        raise ValueError("the array's folder is a link")
