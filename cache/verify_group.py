"""fsck of one shard's group: its attributes, its files, its arrays' metadata and their values."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.arrays import ArraySpec, array_specs, chunk_files, create_arrays, open_for_reading
from cache.codecs import codec_of, is_finite
from cache.errors import ReskdError, StoreError
from cache.group import load_group
from cache.identity import Identity, ShardEntry, keys_digest
from cache.manifest import Manifest
from cache.store import CHUNKS, METADATA, WRITER, GroupStore, file_digest, side_by_side
from cache.view import BLOCK

# Remedies. "hand" means that a person must decide.
REDO = "redo"  # remove the shard's group; cache-teacher then computes it again
RERUN = "rerun"  # remove nothing: cache-teacher repairs it when it is run again
TIDY = "tidy"  # remove files that nothing reads
DATA = "data"  # the cache is whole, but the data set isn't the one that it was made from
HAND = "hand"
FOREIGN = (
    "foreign"  # the group was made by another run than the manifest: REDO, unless all groups were (see `verify.py`)
)


@dataclass(frozen=True)
class Problem:
    """One thing that isn't as it was committed. `shard` is "" for the root. `files`: what TIDY removes."""

    shard: str
    what: str
    remedy: str
    files: tuple[str, ...] = ()  # relative to the cache


@dataclass(frozen=True)
class Expected:
    """What every group of a cache is compared with."""

    path: Path
    manifest: Manifest
    specs: Mapping[str, ArraySpec]
    metadata: Mapping[str, Mapping[str, Any]]  # array -> its metadata, as this version of zarr makes it


def expected_groups(path: Path, manifest: Manifest) -> Expected:
    specs = array_specs(manifest.identity)
    with tempfile.TemporaryDirectory() as folder:
        create_arrays(Path(folder), specs, 1, 1)
        metadata = {name: _metadata(GroupStore(folder), name) for name in specs}
    return Expected(path, manifest, specs, metadata)


def check_shard(expected: Expected, entry: ShardEntry, finished: bool, lengths: np.ndarray | None) -> list[Problem]:
    """The problems of a shard.

    `finished`: whether the manifest says that the shard is finished. `lengths`: number of frames of each clip, int [N]; None:
    unknown. Raises StoreError if a store doesn't answer: nobody knows then what it holds.
    """
    path, shard, folder = expected.path, entry.name, expected.path / entry.name
    try:
        group = load_group(path, shard)
        if group is None:
            if isinstance(folder, Path) and files_below(folder, path):  # a writer puts chunks into a store first
                return [Problem(shard, f"its {METADATA} is missing, other files are present", REDO)]
            return [Problem(shard, "its group is lost", RERUN)] if finished else []
        problem = _check_attributes(group, expected.manifest, entry)
        return [problem] if problem else list(_check_group(expected, shard, group, finished, lengths))
    except StoreError:
        raise
    except ReskdError as error:
        return [Problem(shard, str(error).partition(": delete ")[0].replace(f"{folder}/", ""), REDO)]
    except OSError as error:
        return [Problem(shard, f"{error.filename or folder} can't be read ({error.strerror or error})", HAND)]


def _check_attributes(group: Mapping[str, Any], manifest: Manifest, entry: ShardEntry) -> Problem | None:
    """The first problem of a group's attributes; None if they have none."""
    identity, shard, views = manifest.identity, entry.name, group["views"]
    types = {"keys": list, "views": int, "targets": dict, "files": dict, "quarantine": dict, "fallbacks": dict}
    bad = [name for name, kind in types.items() if not isinstance(group[name], kind)]
    if bad:
        return Problem(shard, f"{METADATA} is damaged: {bad[0]} is {group[bad[0]]!r:.40}", REDO)
    if group["fingerprint"] != identity.fingerprint(shard):
        others = [e.name for e in identity.shards if e.keys_sha256 == group["keys_sha256"] and e.name != shard]
        if others and group["fingerprint"] == identity.fingerprint(others[0]):
            return Problem(shard, f"it is the group of shard {others[0]}", REDO)
        return Problem(shard, "made by another run than the manifest: its fingerprint differs", FOREIGN)
    if not keys_digest(group["keys"]) == group["keys_sha256"] == entry.keys_sha256:
        return Problem(shard, f"{METADATA} is damaged: its keys are not the shard's", REDO)
    for target, fingerprint in group["targets"].items():
        if target not in identity.targets or fingerprint != identity.target_fingerprint(target):
            return Problem(shard, f"its {target} are stored with other settings than the manifest has", FOREIGN)
    if not 1 <= views <= manifest.views or not {*group["quarantine"], *group["fallbacks"]} <= {*group["keys"]}:
        return Problem(
            shard, f"{METADATA} is damaged: {views} views, or reasons for clips that the shard doesn't have", REDO
        )
    return None


def _check_group(
    expected: Expected, shard: str, group: Mapping[str, Any], finished: bool, lengths: np.ndarray | None
) -> Iterator[Problem]:
    manifest, folder, files = expected.manifest, expected.path / shard, group["files"]
    absent = array_specs(manifest.identity, [t for t in manifest.identity.targets if t not in group["targets"]])
    specs = {name: spec for name, spec in expected.specs.items() if name not in absent}
    clips, views = len(group["keys"]), range(group["views"])
    chunks = {f"{name}/{chunk}" for name, spec in specs.items() for chunk in chunk_files(spec, clips, views)}
    if files.keys() != chunks:
        yield Problem(shard, f"{METADATA} is damaged: it lists other files ({min(files.keys() ^ chunks)})", REDO)
        return
    file_of_digest = {str(list(digest)): name for name, digest in files.items()}
    faults = side_by_side(
        folder, lambda name: (name, file_fault(folder / name, files[name], file_of_digest)), files, CHUNKS
    )
    store = GroupStore(folder)
    store.fetch([f"{name}/{METADATA}" for name in specs])
    faults += [(f"{name}/{METADATA}", _metadata_fault(expected, store, name, group)) for name in specs]
    damaged = [Problem(shard, f"{name}: {what}", REDO) for name, what in faults if what]
    yield from damaged
    known = {f"{shard}/{file}" for file in (METADATA, *files, *(f"{name}/{METADATA}" for name in specs))}
    unlisted = [file for file in files_below(folder, expected.path) if file not in known]
    if unlisted:
        first = unlisted[0].removeprefix(f"{shard}/")
        yield Problem(shard, f"{first}: not listed ({len(unlisted)} files)", TIDY, tuple(unlisted))
    if not damaged:
        yield from _check_values(folder, manifest.identity, shard, group, lengths)
    if finished:
        yield from _check_finished(manifest, shard, group)


def _check_finished(manifest: Manifest, shard: str, group: Mapping[str, Any]) -> Iterator[Problem]:
    if group["views"] < manifest.finalised or not {*manifest.finalised_targets} <= {*group["targets"]}:
        yield Problem(
            shard, f"{group['views']} views of {', '.join(group['targets'])}: not all that is finished", RERUN
        )
    rows = {key: row for row, key in enumerate(group["keys"])}
    quarantine = {rows[key]: reason for key, reason in group["quarantine"].items()}
    if group["views"] == manifest.finalised and quarantine != manifest.quarantine.get(shard, {}):
        yield Problem(shard, "the manifest's quarantine isn't the shard's", RERUN)


def _check_values(
    folder: Path, identity: Identity, shard: str, group: Mapping[str, Any], lengths: np.ndarray | None
) -> Iterator[Problem]:
    """Valid rows must have all targets, and views inside the picture and the video. Other rows must be in quarantine."""
    keys, store, specs = group["keys"], GroupStore(folder), array_specs(identity)
    arrays = {name: open_for_reading(store, name) for name in ("valid", "frames", "box")}
    complete, quarantined = np.ones(len(keys), bool), np.isin(keys, list(group["quarantine"]))

    def problem_if(bad: np.ndarray, what: str, remedy: str = REDO) -> Iterator[Problem]:
        if bad.any():
            yield Problem(shard, f"{what}: {int(bad.sum())} clips, {keys[int(np.argmax(bad))]!r} first", remedy)

    for view in range(group["views"]):
        stored = [*("valid", "frames", "box"), *array_specs(identity, group["targets"])]
        store.fetch(
            [f"{n}/{chunk}" for n in stored for chunk in chunk_files(specs[n], len(keys), range(view, view + 1))]
        )
        valid, frames, box = (np.asarray(array[:, view]) for array in arrays.values())
        complete &= valid
        inside = ((box[:, :2] >= 0) & (box[:, 2:] > 0) & (box[:, :2] + box[:, 2:] <= 1 + 1e-6)).all(1)
        yield from problem_if(valid & ~inside, f"view {view}, a box outside the picture")
        yield from problem_if(valid & (frames < 0).any(1), f"view {view}, frames before the first")
        if lengths is not None:
            late = valid & (frames >= lengths[:, None]).any(1)
            yield from problem_if(late, f"view {view}, frames after the last of the data set's video", DATA)
        for target in group["targets"]:
            lacking = _unwritten(store, codec_of(target, identity.targets[target]["codec"]), view, valid)
            complete &= ~lacking | ~quarantined  # a target that was added later and wasn't finite: see ShardWriter
            yield from problem_if(lacking & ~quarantined, f"view {view}, {target} missing or not finite")
    yield from problem_if(~complete & ~quarantined, "not in all views, without a reason in the quarantine")
    yield from problem_if(complete & quarantined, "in all views, and in the quarantine")


def _unwritten(store: GroupStore, codec: Any, view: int, valid: np.ndarray) -> np.ndarray:
    """bool [N]: valid rows of a view whose target is missing or not finite."""
    arrays = {name: open_for_reading(store, name) for name in codec.arrays}
    bad = np.zeros(len(valid), bool)
    for low in range(0, len(valid), BLOCK):
        rows = slice(low, low + BLOCK)
        values = codec.decode({name: np.asarray(array[rows, view]) for name, array in arrays.items()})
        if not is_finite(values[valid[rows]]):
            bad[rows] = [ok and not is_finite(row) for ok, row in zip(valid[rows], values, strict=True)]
    return bad


def file_fault(file: Path, digest: Sequence, file_of_digest: Mapping[str, str] | None = None) -> str | None:
    """How a file differs from the `digest` [size, sha256] that was written; None if it doesn't.

    `file_of_digest`: str([size, sha256]) -> file, to recognise exchanged files. Raises OSError if the disk can't read the file.
    """
    try:
        actual = file_digest(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "missing"
    if actual == list(digest):
        return None
    if other := (file_of_digest or {}).get(str(actual)):
        return f"it is {other}"
    return f"{actual[0]} bytes of {digest[0]}" if actual[0] != digest[0] else "its sha256 is not the one written"


def _metadata_fault(expected: Expected, store: GroupStore, name: str, group: Mapping[str, Any]) -> str | None:
    """How an array's metadata differ from those that `create_arrays` makes, as this version of zarr reads both."""
    try:
        metadata = _metadata(store, name)
    except FileNotFoundError:
        return "missing"
    except (OSError, StoreError):
        raise
    except Exception as error:  # zarr raises many types for damaged metadata
        return f"damaged ({type(error).__name__})"
    spec, clips, shape = expected.specs[name], len(group["keys"]), list(metadata["shape"])
    chunks = [min(spec.rows or clips, clips), 1, *spec.tail]
    if shape[:1] + shape[2:] != [clips, *spec.tail] or shape[1] < group["views"]:
        return f"damaged (shape {shape})"
    if list(metadata["chunk_grid"].get("configuration", {}).get("chunk_shape", ())) != chunks:
        return f"damaged (chunk grid {metadata['chunk_grid']})"
    differing = [key for key, value in expected.metadata[name].items()
                 if key not in ("shape", "chunk_grid") and metadata.get(key) != value]  # fmt: skip
    return f"damaged ({differing[0]} {metadata.get(differing[0])!r:.60})" if differing else None


def _metadata(store: GroupStore, name: str) -> dict[str, Any]:
    """Without the size of Blosc's blocks: older versions have another, and each chunk names its own."""
    metadata = open_for_reading(store, name).metadata.to_dict()
    codecs = [codec | {"configuration": {k: v for k, v in codec.get("configuration", {}).items() if k != "blocksize"}}
              for codec in metadata["codecs"]]  # fmt: skip
    return metadata | {"codecs": codecs}


def files_below(folder: Path, path: Path) -> list[str]:
    """Every file below a folder, as a path relative to `path`.

    In a store, none of a group that a process writes: its chunks are there before they are listed.
    """
    if not isinstance(folder, Path):
        files = folder.files()
        return [] if WRITER in files else sorted((folder.relative_to(path) / name).as_posix() for name in files)
    return sorted(p.relative_to(path).as_posix() for p in folder.rglob("*") if p.is_file())
