"""fsck of one shard's group: its attributes, its files, its arrays' metadata, and the values in them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from cache.codecs import codec_of, is_finite
from cache.errors import ReskdError
from cache.group import ArraySpec, array_specs, create_arrays, load_group
from cache.identity import Identity, ShardEntry, keys_digest
from cache.manifest import Manifest
from cache.store import METADATA, file_digest
from cache.view import BLOCK

REDO = "redo"  # the shard's group goes, cache-teacher computes it again
RERUN = "rerun"  # cache-teacher, run again, mends it as it is
TIDY = "tidy"  # files that nothing reads; they go
DATA = "data"  # the cache is what it says it is, the data set isn't the one that it was made of
HAND = "hand"  # no program should decide
FOREIGN = "foreign"  # of another run than the manifest: REDO, unless all groups are (see `verify.py`)


@dataclass(frozen=True)
class Problem:
    """One thing that isn't as it was committed; `shard` is "" for the root, `files` are those that TIDY removes."""

    shard: str
    what: str
    remedy: str
    files: tuple[str, ...] = ()  # relative to the cache


@dataclass(frozen=True)
class Wanted:
    """What every group is held against."""

    path: Path
    manifest: Manifest
    specs: Mapping[str, ArraySpec]
    metadata: Mapping[str, Mapping[str, Any]]  # of each array, as this zarr makes it of any number of rows and views


def wanted_groups(path: Path, manifest: Manifest) -> Wanted:
    specs = array_specs(manifest.identity)
    with tempfile.TemporaryDirectory() as folder:
        create_arrays(Path(folder), specs, 1, 1)
        metadata = {name: _metadata(Path(folder), name) for name in specs}
    return Wanted(path, manifest, specs, metadata)


def check_shard(wanted: Wanted, entry: ShardEntry, finished: bool, lengths: np.ndarray | None) -> list[Problem]:
    """Its problems; `finished`: the manifest says that it is; `lengths`: frames of each clip, int [N], where known."""
    path, shard, folder = wanted.path, entry.name, wanted.path / entry.name
    try:
        group = load_group(path, shard)
        if group is None:
            if files_below(folder, path):
                return [Problem(shard, f"its {METADATA} is missing, other files are there", REDO)]
            return [Problem(shard, "its group is lost", RERUN)] if finished else []
        misfit = _misfit(group, wanted.manifest, entry)
        return [misfit] if misfit else list(_check_group(wanted, shard, group, finished, lengths))
    except ReskdError as error:
        return [Problem(shard, str(error).partition(": delete ")[0].replace(f"{folder}/", ""), REDO)]
    except OSError as error:
        return [Problem(shard, f"{error.filename or folder} can't be read ({error.strerror or error})", HAND)]


def _misfit(group: Mapping[str, Any], manifest: Manifest, entry: ShardEntry) -> Problem | None:
    """What is wrong with a group's attributes."""
    identity, shard, views = manifest.identity, entry.name, group["views"]
    types = {"keys": list, "views": int, "targets": dict, "files": dict, "quarantine": dict, "fallbacks": dict}
    bad = [name for name, of in types.items() if not isinstance(group[name], of)]
    if bad:
        return Problem(shard, f"{METADATA} is damaged: {bad[0]} is {group[bad[0]]!r:.40}", REDO)
    if group["fingerprint"] != identity.fingerprint(shard):
        others = [e.name for e in identity.shards if e.keys_sha256 == group["keys_sha256"] and e.name != shard]
        if others and group["fingerprint"] == identity.fingerprint(others[0]):
            return Problem(shard, f"it is the group of shard {others[0]}", REDO)
        return Problem(shard, "made by another run than the manifest's: its fingerprint differs", FOREIGN)
    if not keys_digest(group["keys"]) == group["keys_sha256"] == entry.keys_sha256:
        return Problem(shard, f"{METADATA} is damaged: its keys are not the shard's", REDO)
    for target, fingerprint in group["targets"].items():
        if target not in identity.targets or fingerprint != identity.target_fingerprint(target):
            return Problem(shard, f"its {target} are stored otherwise than the manifest says", FOREIGN)
    if not 1 <= views <= manifest.views or not {*group["quarantine"], *group["fallbacks"]} <= {*group["keys"]}:
        return Problem(shard, f"{METADATA} is damaged: {views} views, or reasons for clips that it hasn't", REDO)
    return None


def _check_group(
    wanted: Wanted, shard: str, group: Mapping[str, Any], finished: bool, lengths: np.ndarray | None
) -> Iterator[Problem]:
    manifest, folder, files = wanted.manifest, wanted.path / shard, group["files"]
    absent = array_specs(manifest.identity, [t for t in manifest.identity.targets if t not in group["targets"]])
    specs = {name: spec for name, spec in wanted.specs.items() if name not in absent}
    chunks = {f"{name}/{c}" for name, spec in specs.items() for c in _chunks(spec, len(group["keys"]), group["views"])}
    if files.keys() != chunks:
        yield Problem(shard, f"{METADATA} is damaged: it lists other files ({min(files.keys() ^ chunks)})", REDO)
        return
    names = {str(list(digest)): name for name, digest in files.items()}
    faults = [(name, fault(folder / name, digest, names)) for name, digest in files.items()]
    faults += [(f"{name}/{METADATA}", _array_fault(wanted, folder, name, group)) for name in specs]
    damaged = [Problem(shard, f"{name}: {what}", REDO) for name, what in faults if what]
    yield from damaged
    known = {f"{shard}/{file}" for file in (METADATA, *files, *(f"{name}/{METADATA}" for name in specs))}
    left = [file for file in files_below(folder, wanted.path) if file not in known]
    if left:
        yield Problem(shard, f"{left[0].removeprefix(f'{shard}/')}: not listed ({len(left)} files)", TIDY, tuple(left))
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
    """Rows that have targets have whole ones, of views inside the picture and the video; the others have a reason."""
    keys, store = group["keys"], LocalStore(folder, read_only=True)
    arrays = {name: zarr.open_array(store, path=name, mode="r", zarr_format=3) for name in ("valid", "frames", "box")}
    whole, reasons = np.ones(len(keys), bool), np.isin(keys, list(group["quarantine"]))

    def told(bad: np.ndarray, what: str, remedy: str = REDO) -> Iterator[Problem]:
        if bad.any():
            yield Problem(shard, f"{what}: {int(bad.sum())} clips, {keys[int(np.argmax(bad))]!r} first", remedy)

    for view in range(group["views"]):
        valid, frames, box = (np.asarray(array[:, view]) for array in arrays.values())
        whole &= valid
        inside = ((box[:, :2] >= 0) & (box[:, 2:] > 0) & (box[:, :2] + box[:, 2:] <= 1 + 1e-6)).all(1)
        yield from told(valid & ~inside, f"view {view}, a box outside the picture")
        yield from told(valid & (frames < 0).any(1), f"view {view}, frames before the first")
        if lengths is not None:
            late = valid & (frames >= lengths[:, None]).any(1)
            yield from told(late, f"view {view}, frames after the last of the data set's video", DATA)
        for target in group["targets"]:
            lacking = _unwritten(store, codec_of(target, identity.targets[target]["codec"]), view, valid)
            whole &= ~lacking | ~reasons  # added later, and not finite: see ShardWriter
            yield from told(lacking & ~reasons, f"view {view}, {target} not there or not finite")
    yield from told(~whole & ~reasons, "not in all views, without a reason in the quarantine")
    yield from told(whole & reasons, "in all views, and in the quarantine")


def _unwritten(store: LocalStore, codec: Any, view: int, valid: np.ndarray) -> np.ndarray:
    """bool [N]: rows of a view that should have a target and have none, or one that isn't finite."""
    arrays = {name: zarr.open_array(store, path=name, mode="r", zarr_format=3) for name in codec.arrays}
    bad = np.zeros(len(valid), bool)
    for low in range(0, len(valid), BLOCK):
        rows = slice(low, low + BLOCK)
        values = codec.decode({name: np.asarray(array[rows, view]) for name, array in arrays.items()})
        if not is_finite(values[valid[rows]]):
            bad[rows] = [ok and not is_finite(one) for ok, one in zip(valid[rows], values, strict=True)]
    return bad


def _chunks(spec: ArraySpec, clips: int, views: int) -> list[str]:
    """The files of an array, but for its metadata."""
    blocks = range(-(-clips // min(spec.rows or clips, clips)))
    return [".".join(map(str, ("c", b, v, *(0 for _ in spec.tail)))) for b in blocks for v in range(views)]


def fault(file: Path, digest: Sequence, others: Mapping[str, str] | None = None) -> str | None:
    """How a file differs from [size, sha256], None where it doesn't; `others`: the name of the file of each digest.

    Raises OSError for a disk that doesn't give it.
    """
    try:
        found = file_digest(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "missing"
    if found == list(digest):
        return None
    if other := (others or {}).get(str(found)):
        return f"it is {other}"
    return f"{found[0]} bytes of {digest[0]}" if found[0] != digest[0] else "its sha256 is not the one written"


def _array_fault(wanted: Wanted, folder: Path, name: str, group: Mapping[str, Any]) -> str | None:
    """How an array's metadata differs from what `create_arrays` makes, as this zarr reads both."""
    try:
        found = _metadata(folder, name)
    except FileNotFoundError:
        return "missing"
    except OSError:
        raise
    except Exception as error:  # whatever zarr raises for it
        return f"damaged ({type(error).__name__})"
    spec, clips, shape = wanted.specs[name], len(group["keys"]), list(found["shape"])
    chunks = [min(spec.rows or clips, clips), 1, *spec.tail]
    if shape[:1] + shape[2:] != [clips, *spec.tail] or shape[1] < group["views"]:
        return f"damaged (shape {shape})"
    if list(found["chunk_grid"].get("configuration", {}).get("chunk_shape", ())) != chunks:
        return f"damaged (chunk grid {found['chunk_grid']})"
    other = [part for part, value in wanted.metadata[name].items()
             if part not in ("shape", "chunk_grid") and found.get(part) != value]  # fmt: skip
    return f"damaged ({other[0]} {found.get(other[0])!r:.60})" if other else None


def _metadata(folder: Path, name: str) -> dict[str, Any]:
    store = LocalStore(folder, read_only=True)
    return zarr.open_array(store, path=name, mode="r", zarr_format=3).metadata.to_dict()


def files_below(folder: Path, path: Path) -> list[str]:
    """Every file below a folder, relative to `path`."""
    return sorted(p.relative_to(path).as_posix() for p in folder.rglob("*") if p.is_file())
