"""The deviation of each stored channel of the teacher's maps, an array at the root. Losses may divide by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.codecs import from_stored
from cache.create import write_constants
from cache.group import load_manifest, write_attributes
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.store import file_digest
from cache.view import BLOCK

NAME = "channel_std"
SAMPLED_BLOCKS = 16  # of 64 clips


def add_channel_std(path: str | Path, maps: Path | None = None) -> Manifest:
    """Estimate the deviations from stored maps, if the cache has maps and no deviations yet. Returns the manifest.

    `maps`: the cache in a store that has the maps, of which `path` is the local folder; None: `path` itself.

    The sample is 16 blocks of view 0, spread over the cache. It is taken once: a cache that grows keeps its deviations, so
    runs go on as they began. Nothing is asked of the teacher.
    Raises ReskdError for an unfinished cache, and as CacheReader does.
    """
    path = Path(path)
    manifest = load_manifest(path)
    listed = {file: digest for file, digest in manifest.constants.items() if file.startswith(f"{NAME}/")}
    intact = all((path / file).is_file() and file_digest(path / file) == digest for file, digest in listed.items())
    if "features" not in manifest.identity.targets or (listed and intact):
        return manifest
    files = write_constants(path, {NAME: _channel_std(maps or path, manifest)})
    manifest = replace(manifest, constants={**manifest.constants, **files})
    write_attributes(path, manifest.to_json())
    return manifest


def _channel_std(path: Path, manifest: Manifest) -> np.ndarray:
    """float32 [d], over the positions of the sampled maps. In float64: the mean is large beside the deviation of some."""
    reader = CacheReader(path, ("features",), capacity_blocks=1)
    constants = {name: values for name, values in reader.constants().items() if name in ("scale", "offset")}
    blocks = [(e.name, i) for e in manifest.identity.shards for i in range(-(-e.clips // BLOCK))]
    chosen = blocks if len(blocks) <= SAMPLED_BLOCKS else [
        blocks[i * len(blocks) // SAMPLED_BLOCKS] for i in range(SAMPLED_BLOCKS)
    ]  # fmt: skip
    count, total, squares = 0, 0.0, 0.0
    for shard, i in chosen:
        block = reader.block(shard, 0, i)
        for row in np.flatnonzero(block.valid):  # one map at a time: a block of float64 is large
            positions = from_stored(block.features[row], constants).reshape(-1, block.features.shape[-1])
            count += len(positions)
            total = total + positions.sum(0, dtype=np.float64)
            squares = squares + np.square(positions, dtype=np.float64).sum(0)
    if not count:
        return np.ones(manifest.identity.targets["features"]["width"], np.float32)
    return np.sqrt(np.maximum(squares / count - np.square(total / count), 0)).astype(np.float32)
