"""Small caches with known content, for the tests of writer, reader and kills."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.create import create_cache
from cache.finalise import finalise
from cache.identity import Identity, ShardEntry, keys_digest
from cache.manifest import FORMAT, Manifest
from cache.view import ViewPolicy
from cache.writer import ShardWriter

CLASSES, FRAMES, GRID, WIDTH = 5, 2, (1, 2, 2), 3
SHARD = "000000.tar"
CONSTANTS = {  # what a teacher's classifier might be
    "classifier": np.random.default_rng(0).normal(size=(WIDTH, CLASSES)).astype(np.float32),
    "classifier_bias": np.zeros(CLASSES, np.float32),
}


def keys_of(shard: str, clips: int) -> list[str]:
    return [f"{Path(shard).stem}-{row:04d}" for row in range(clips)]


def identity_of(clips: Mapping[str, int], *, codec: str = "uint8", features: bool = False, **fields) -> Identity:
    targets = {"logits": {"codec": codec, "width": CLASSES}}
    if features:
        whole = [*GRID, WIDTH]
        targets["features"] = {"codec": "float16", "grid": list(GRID), "width": WIDTH, "map": whole, "sample": None}
    entries = tuple(ShardEntry(s, n, 1000 + n, "ab" * 32, keys_digest(keys_of(s, n))) for s, n in clips.items())
    teacher = {"model": {"name": "tsm", "depth": 18}, "weights_sha256": "cd" * 32, "size": 48, "batch_size": 16}
    settings = {
        "format": FORMAT,
        "teacher": teacher,
        "decoder": "decord 0.6.0",
        "policy": ViewPolicy(num_frames=FRAMES),
        "shards": entries,
        "classes": tuple(f"class {i}" for i in range(CLASSES)),
        "targets": targets,
    }
    return Identity(**settings | fields)


def content(identity: Identity, shard: str, view: int, invalid: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """What a teacher might give for one view: the same arrays at every call."""
    n, rng = identity.shard(shard).clips, np.random.default_rng([zlib.crc32(shard.encode()), view])
    columns = {
        "frames": rng.integers(0, 100, (n, identity.policy.num_frames)).astype(np.int32),
        "box": rng.random((n, 4), dtype=np.float32),
        "flip": rng.random(n) < 0.5,
        "valid": ~np.isin(np.arange(n), invalid),
        "logits": rng.normal(size=(n, CLASSES)).astype(np.float32),
    }
    if "features" in identity.targets:
        columns["features"] = rng.normal(size=(n, *GRID, WIDTH)).astype(np.float32)
    return columns


def write_views(
    path: Path, manifest: Manifest, shard: str, views: range, *, invalid: Sequence[int] = (), batch: int = 48
) -> None:
    """Write and commit views in batches, all views of a batch before the next one, as stage one does.

    In the targets that the shard lacks first of `missing_work`.
    """
    identity, clips = manifest.identity, manifest.identity.shard(shard).clips
    keys = keys_of(shard, clips)
    writer = ShardWriter(path, manifest, shard, keys, views)
    whole = {view: content(identity, shard, view, invalid) for view in views}
    names = {"frames", "box", "flip", "valid", *writer.targets}
    columns = {view: {name: values for name, values in of.items() if name in names} for view, of in whole.items()}
    for low in range(0, clips, batch):
        rows = slice(low, min(low + batch, clips))
        for view in views:
            writer.write(view, rows, **{name: values[rows] for name, values in columns[view].items()})
    writer.commit({keys[row]: "no video stream" for row in invalid}, {})


def make_cache(
    path: Path, shards: Mapping[str, int], views: int = 2, *, invalid: Sequence[int] = (), **fields
) -> Manifest:
    """A finished cache."""
    manifest = create_cache(path, Manifest(identity_of(shards, **fields), views))
    for shard in shards:
        write_views(path, manifest, shard, range(views), invalid=invalid)
    return finalise(path)


def tree_of(path: Path) -> dict[str, str]:
    """Every file below a folder with the sha256 of its bytes, and every folder."""
    return {
        p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(path.rglob("*"))
    }
