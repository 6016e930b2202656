"""What a data set of 10 million clips costs before its first clip: to open it, to order an epoch, to serve it from a worker.

The index, the manifest and the files that a worker reads are made synthetically, by the program's own writers. No tar and no
chunk of targets is needed.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from cache.arrays import array_specs, chunk_files
from cache.create import create_cache
from cache.finalise import finalise
from cache.group import group_node, write_attributes
from cache.identity import Identity, ShardEntry, keys_digest
from cache.manifest import FORMAT, Manifest
from cache.reader import CacheReader
from cache.store import METADATA, side_by_side
from cache.view import ViewPolicy
from stages.bench.clocks import cpu_seconds
from stages.bench.figures import Figure, at_most, show
from stages.bench.processes import in_new_process
from stages.bench.s3_server import store_nearby
from stages.remote.published_cache import PublishedCache
from stages.remote.url_path import UrlPath
from stages.shards.dataset import OPEN_SHARDS, open_dataset
from stages.shards.index import make_index, write_index, write_rows
from stages.stream.order import Order
from stages.video.decode import decoder_identity


@dataclass(frozen=True)
class Setup:
    """`shards` of `clips` each, in `views`. A worker reads the metadata of more shards than it keeps open."""

    shards: int = 10_000
    clips: int = 1_000
    views: int = 8
    read: int = OPEN_SHARDS + 64


FULL = Setup()
QUICK = Setup(shards=500)


def run_metadata(quick: bool, output: Path | None) -> list[Figure]:
    """Measure in local folders, in CPU seconds; the end of stage one on an S3 server of this machine, in wall time."""
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        figures = [*_reading(Path(temporary), setup), _finalising(Path(temporary), setup)]
    show("metadata", figures, output)
    return figures


def _reading(folder: Path, setup: Setup) -> list[Figure]:
    data, cache = folder / "data", folder / "cache.zarr"
    entries = make_data(data, setup)
    manifest = create_cache(cache, Manifest(identity_of(entries), setup.views))
    for entry in entries[: setup.read]:
        write_attributes(cache / entry.name, group_attributes(manifest, entry, setup))
    size = f"{setup.shards:,} shards, {setup.shards * setup.clips / 1e6:g} M clips × {setup.views} views"
    rows = open_dataset(data).usable_rows()
    names = [entry.name for entry in entries]
    order = Order(rows, names, 0, 64, 8, 16, 64, setup.views)
    memory = in_new_process(partial(_worker_memory, data, cache, names[: setup.read]))
    return [
        at_most(f"open the data set and its cache: {size}", cpu_seconds(lambda: _open(data, cache), 3), "s", 0.5),
        at_most("order an epoch", cpu_seconds(lambda: order.epoch(0), 3), "s", 1.5),
        at_most("a worker's memory beyond its start", [memory / 1e6], "MB", 300),
    ]


def _finalising(folder: Path, setup: Setup) -> Figure:
    """The end of stage one on a machine that has computed nothing: every group's attributes are read, the manifest is put."""
    entries = make_data(folder / "none", Setup(setup.shards, setup.clips, setup.views, read=0))
    manifest = Manifest(identity_of(entries), setup.views)
    with store_nearby(folder):
        url = UrlPath("s3://metadata/cache.zarr")

        def put(entry: ShardEntry) -> None:
            (url / entry.name / METADATA).write_bytes(group_node(group_attributes(manifest, entry, setup)))

        side_by_side(url, put, entries)
        (url / METADATA).write_bytes(group_node(manifest.to_json()))
        published = PublishedCache(url, folder / "copy", "bench", 0)
        published.folder.mkdir()
        began = time.perf_counter()
        published.pull()
        published.root.change(lambda: finalise(published.folder))
        published.remove_dead_leases(manifest)
        seconds = time.perf_counter() - began
    return at_most("finalise in a store", [seconds], "s", 60)


def _open(data: Path, cache: Path) -> None:
    open_dataset(data)
    CacheReader(cache)


def _worker_memory(data: Path, cache: Path, names: list[str]) -> int:
    """The bytes that a process takes when it has opened all shards of `names`, as many as it keeps open."""
    process = psutil.Process()
    before = process.memory_full_info().uss
    dataset, reader = open_dataset(data), CacheReader(cache)
    for name in names:
        dataset.rows(name)
        reader._group(name, 0)
    return process.memory_full_info().uss - before


def make_data(path: Path, setup: Setup) -> list[ShardEntry]:
    """Write an index, and the rows of its first `setup.read` shards. Returns the shards."""
    decoder, entries, digests = decoder_identity(), [], []
    for number in range(setup.shards):
        name = f"{number:06d}.tar"
        keys = _keys(name, setup)
        entries.append(ShardEntry(name, setup.clips, setup.clips * 200_000, "0" * 64, keys_digest(keys)))
        digests.append(write_rows(path, name, _rows(keys, decoder)) if number < setup.read else "0" * 64)
    classes = [f"class {number}" for number in range(400)]
    index = make_index(classes=classes, decoder=decoder, base=".", shards=list(zip(entries, digests, strict=True)),
                       quarantine={}, rules=1, check="quick")  # fmt: skip
    write_index(path, index)
    return entries


def _keys(shard: str, setup: Setup) -> list[str]:
    return [f"{shard[:6]}-{number:011d}" for number in range(setup.clips)]  # as long as YouTube's names of videos


def _rows(keys: list[str], decoder: str) -> list[dict]:
    return [
        {"key": key, "ext": "mp4", "offset": 1536 + 200_000 * number, "size": 190_000, "header": 0, "sha256": f"{number:064x}",
         "frames": 300, "fps": 30.0, "width": 340, "height": 256, "duration": 10.0, "labels": [number % 400],
         "decoder": decoder, "start": 0, "fallback": None, "error": None}
        for number, key in enumerate(keys)
    ]  # fmt: skip


def identity_of(entries: list[ShardEntry]) -> Identity:
    """Of a cache with logits and int4 maps of a ResNet-50."""
    maps = {"codec": "int4", "grid": [8, 7, 7], "width": 2048, "map": [8, 7, 7, 2048], "sample": None}
    targets = {"logits": {"codec": "uint8", "width": 400}, "features": maps}
    classes = tuple(f"class {number}" for number in range(400))
    return Identity(FORMAT, {"weights_sha256": "0"}, decoder_identity(), ViewPolicy(), tuple(entries), classes, targets)


def group_attributes(manifest: Manifest, entry: ShardEntry, setup: Setup) -> dict:
    """What a committed group of this shard says, with its list of chunk files."""
    identity = manifest.identity
    files = {
        f"{name}/{file}": [1000, "0" * 64]
        for name, spec in array_specs(identity).items()
        for file in chunk_files(spec, entry.clips, range(setup.views))
    }
    keys = _keys(entry.name, setup)
    targets = {target: identity.target_fingerprint(target) for target in identity.targets}
    return json.loads(json.dumps({
        "format": FORMAT, "fingerprint": identity.fingerprint(entry.name), "keys": keys, "keys_sha256": keys_digest(keys),
        "quarantine": {}, "fallbacks": {}, "views": setup.views, "targets": targets, "files": files,
    }))  # fmt: skip
