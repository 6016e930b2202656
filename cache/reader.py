"""Reading a cache: blocks of rows, verified. Files are opened in the process that reads them, when it first needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.arrays import ArraySpec, array_specs, chunk_file, open_for_reading
from cache.codecs import codec_of, is_finite
from cache.errors import ReskdError
from cache.group import check_fingerprint, load_group, load_manifest, read_constants
from cache.identity import ShardEntry, keys_digest
from cache.lru import LRU
from cache.manifest import Manifest, bytes_of_clip_view
from cache.store import METADATA, VerifiedStore, as_path
from cache.view import BLOCK, View

__all__ = ["Block", "CacheReader", "check_join", "load_manifest"]

_OPEN_GROUPS = 256
_READING = (
    5  # blocks of memory beside those that are kept: the file of a new one, and what zarr makes of it (bench join)
)
_HELD_VIEWS = 32  # views whose small arrays are kept in memory: a few MB each at most


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of one view of one shard. Arrays are read-only. If `valid` of a row is False, its targets are zeros."""

    keys: tuple[str, ...]
    frames: np.ndarray  # [n,T] int32
    box: np.ndarray  # [n,4] float32
    flip: np.ndarray  # [n] bool
    valid: np.ndarray  # [n] bool
    logits: np.ndarray | None  # [n,K] float32
    features: np.ndarray | None  # [n,T',g,g',d] float16 or int8 codes; in memory channel by channel, as on disk

    def view_of(self, i: int) -> View:
        """The stored view of row `i` of the block."""
        return View(self.frames[i], self.box[i], bool(self.flip[i]))


class CacheReader:
    """The stored views and targets of a cache. Cheap to make and to pickle; usable after fork, forkserver and spawn.

    `targets`: which targets to read with the views. At most `capacity_blocks` blocks stay in memory, and the least recently
    used one is dropped first; the default suffices for an order of 64 streams and windows of 16. The manifest is read once:
    a cache that grows later doesn't change the reader.

    Raises ReskdError, naming shard and array, for a chunk that is missing, empty, exchanged or damaged, for views that
    are not committed, and for targets that are not finite.
    """

    def __init__(self, path: str | Path, targets: Sequence[str] = ("logits",), capacity_blocks: int = 64 * 16):
        self.path, self.targets = as_path(path), tuple(targets)
        self.manifest: Manifest = load_manifest(path)
        stored = self.manifest.identity.targets
        absent = [target for target in self.targets if target not in stored]
        if absent:
            raise ReskdError(
                f"{path} holds no {' and no '.join(absent)}, only {', '.join(stored) or 'views'}: train with losses that need "
                f"only these, or add the target: run cache-teacher again, with targets.{absent[0]}."
            )
        self._specs = array_specs(self.manifest.identity)
        self._capacity = capacity_blocks
        self._groups, self._views, self._blocks = LRU(_OPEN_GROUPS), LRU(_HELD_VIEWS), LRU(capacity_blocks)

    def block(self, shard: str, view: int, block: int) -> Block:
        """Rows [64 * block, 64 * block + 64) of a view; the last block of a shard may have fewer."""
        return self._blocks.get((shard, view, block), lambda: self._read_block(shard, view, block))

    def most_bytes(self) -> int:
        """Bytes of memory that the reader takes at most. Its blocks have maps as they are stored, and logits in float32."""
        identity = self.manifest.identity
        logits = 4 * identity.targets["logits"]["width"] if "logits" in self.targets else 0
        row = bytes_of_clip_view(identity, [t for t in self.targets if t != "logits"]) + logits
        return (self._capacity + _READING) * BLOCK * row

    def view(self, shard: str, view: int) -> Block:
        """All rows of a view, without features. The result isn't kept in memory."""
        group = self._group(shard, view)
        return self._decoded(group, view, slice(0, len(group.keys)), [t for t in self.targets if t != "features"])

    def constants(self) -> dict[str, np.ndarray]:
        """The root's arrays by name, which are needed to read features; see `identity.CONSTANTS`.

        Raises ReskdError if one of their files is missing, or is not the one that was written.
        """
        return read_constants(self.path, self.manifest)

    def _read_block(self, shard: str, view: int, block: int) -> Block:
        group = self._group(shard, view)
        rows = slice(block * BLOCK, min(block * BLOCK + BLOCK, len(group.keys)))
        if not 0 <= rows.start < rows.stop:
            raise ReskdError(
                f"{self.path}, shard {shard}: no block {block} in {len(group.keys)} rows; blocks have {BLOCK} rows."
            )
        return self._decoded(group, view, rows, self.targets)

    def _group(self, shard: str, view: int) -> "_OpenGroup":
        group = self._groups.get(shard, lambda: _OpenGroup(self.path, self.manifest, self._specs, shard))
        if not 0 <= view < group.views:
            raise ReskdError(
                f"{self.path}, shard {shard}: view {view} is not committed, the shard has {group.views} views: "
                "run cache-teacher to the end."
            )
        absent = [target for target in self.targets if target not in group.targets]
        if absent:
            raise ReskdError(
                f"{self.path}, shard {shard}: its {' and '.join(absent)} are not committed: run cache-teacher to the end."
            )
        return group

    def _decoded(self, group: "_OpenGroup", view: int, rows: slice, targets: Sequence[str]) -> Block:
        names = ("frames", "box", "flip", "valid")
        if not isinstance(self.path, Path):
            self._fetch(group, view, rows, (*names, *array_specs(self.manifest.identity, targets)))
        columns: dict[str, Any] = {name: self._column(group, name, view, rows) for name in names}
        valid = columns["valid"]
        for target in ("logits", "features"):
            columns[target] = self._target(group, target, view, rows, valid) if target in targets else None
        for target in targets if not valid.all() else ():
            columns[target][~valid] = 0
        for values in columns.values():
            if values is not None:
                values.flags.writeable = False  # all callers share the block
        return Block(keys=group.keys[rows], **columns)

    def _fetch(self, group: "_OpenGroup", view: int, rows: slice, names: Sequence[str]) -> None:
        """Ask the store for these arrays at once, but for what is kept in memory."""
        small = self._small(group, view)
        group.fetch([name for name in names if self._specs[name].rows or name not in small], view, rows.start)

    def _target(self, group: "_OpenGroup", target: str, view: int, rows: slice, valid: np.ndarray) -> np.ndarray:
        """Decoded rows of a target. `valid` is changed: a row becomes invalid if it lacks this target and is in quarantine.

        Such a row exists if the target was added later and the teacher's answer wasn't finite.
        """
        codec = codec_of(target, self.manifest.identity.targets[target]["codec"])
        values = codec.decode({name: self._column(group, name, view, rows) for name in codec.arrays})
        if not valid.all():
            values[~valid] = 0
        if not is_finite(values):
            bad = np.array([not is_finite(row) for row in values])
            quarantined = np.isin(group.keys[rows], list(group.quarantine))
            if (bad & ~quarantined).any():
                first = int(np.argmax(bad & ~quarantined))
                raise ReskdError(
                    f"{self.path}, shard {group.shard}, view {view}, row {rows.start + first} "
                    f"({group.keys[rows][first]!r}): array {' or '.join(codec.arrays)} holds NaN, infinity or nothing for "
                    f"a valid row. Delete {self.path / group.shard} and run cache-teacher again."
                )
            valid &= ~bad
        return np.moveaxis(values, 1, -1) if target == "features" else values

    def _column(self, group: "_OpenGroup", name: str, view: int, rows: slice) -> np.ndarray:
        """Rows of an array. A feature map is read block by block; a small array is read for the whole view and kept."""
        if self._specs[name].rows is not None:
            return group.read(name, view, rows)
        small = self._small(group, view)
        if name not in small:
            small[name] = group.read(name, view, slice(0, len(group.keys)))
        return small[name][rows].copy()  # a slice would keep the whole view in memory as long as the block

    def _small(self, group: "_OpenGroup", view: int) -> dict[str, np.ndarray]:
        """The small arrays of a view that are kept in memory."""
        return self._views.get((group.shard, view), dict)


def check_join(manifest: Manifest, entries: Sequence[ShardEntry]) -> None:
    """Check that the cache has every shard of a data set, with the same name, number of clips and keys.

    Bytes may differ (a data set at another resolution has the same keys), and the cache may have more shards.
    Raises ReskdError, which names the first shard that doesn't fit, and how many don't.
    """
    stored = {entry.name: entry for entry in manifest.identity.shards}
    problems = []
    for entry in entries:
        cached = stored.get(entry.name)
        if cached is None:
            problems.append(f"shard {entry.name} is in the data set and not in the cache")
        elif cached.clips != entry.clips:
            problems.append(f"shard {entry.name} has {entry.clips} clips in the data set, {cached.clips} in the cache")
        elif cached.keys_sha256 != entry.keys_sha256:
            problems.append(f"shard {entry.name} has other keys, or another order, in the data set than in the cache")
    if problems:
        raise ReskdError(
            f"{problems[0]} ({len(problems)} of {len(entries)} shards don't fit): give the data set that the cache "
            "was made from, or run cache-teacher on this one into a new folder."
        )


class _OpenGroup:
    """One shard's group: its attributes are read at once, an array is opened when it is first read."""

    def __init__(self, path: Path, manifest: Manifest, specs: Mapping[str, ArraySpec], shard: str):
        entry = manifest.identity.shard(shard)
        attributes = load_group(path, shard)
        if attributes is None:
            raise ReskdError(f"{path}: shard {shard} is missing (not committed, or lost): run cache-teacher.")
        check_fingerprint(path, manifest.identity, shard, attributes)
        self.shard, self.folder, self.specs = shard, path / shard, specs
        self.keys, self.views, self.targets = tuple(attributes["keys"]), attributes["views"], attributes["targets"]
        self.quarantine = attributes["quarantine"]
        if keys_digest(self.keys) != entry.keys_sha256:
            raise ReskdError(f"{self.folder}: its keys are damaged: delete it and run cache-teacher again.")
        self._store = VerifiedStore(self.folder, attributes["files"])
        self._arrays: dict[str, zarr.Array] = {}

    def fetch(self, names: Sequence[str], view: int, row: int) -> None:
        """Ask the store at once for all that reads of these arrays need: of one view, the chunks that hold `row`."""
        keys = [f"{name}/{METADATA}" for name in names if name not in self._arrays]
        keys += [f"{n}/{chunk_file(self.specs[n], row // (self.specs[n].rows or len(self.keys)), view)}" for n in names]
        self._store.fetch(keys)

    def read(self, name: str, view: int, rows: slice) -> np.ndarray:
        """Rows of one view, [n, *tail]. Raises ReskdError for anything that isn't as it was committed."""
        try:
            if name not in self._arrays:
                self._arrays[name] = self._open(name)
            return np.asarray(self._arrays[name][rows, view])
        except (ReskdError, MemoryError, PermissionError):
            raise
        except Exception as error:  # zarr and its codecs raise many types for damaged files
            raise ReskdError(
                f"{self.folder}: array {name}, view {view} can't be read ({type(error).__name__}: {error}). "
                f"Delete {self.folder} and run cache-teacher again."
            ) from error

    def _open(self, name: str) -> zarr.Array:
        array, spec, clips = open_for_reading(self._store, name), self.specs[name], len(self.keys)
        expected = (clips, *spec.tail), (min(spec.rows or clips, clips), 1, *spec.tail), np.dtype(spec.dtype)
        if ((array.shape[0], *array.shape[2:]), array.chunks, array.dtype) != expected or array.shape[1] < self.views:
            raise ReskdError(
                f"{self.folder}: array {name} is {array.dtype} {list(array.shape)} in chunks {list(array.chunks)}, "
                f"which isn't what the manifest says: delete {self.folder} and run cache-teacher again."
            )
        return array
