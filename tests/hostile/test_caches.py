"""Caches and packs of others: metadata that name other codecs, files or folders, and claim more than there is."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.errors import ReskdError
from cache.group import load_group, load_manifest, read_constants
from cache.reader import CacheReader
from cache.verify import verify
from cache.writer import ShardWriter
from stages.stream.pack_reader import open_pack
from tests.hostile.attempts import files, little_memory, refused
from tests.hostile.test_json import BAD, put

STORED = Path(__file__).parents[1] / "formats/2026_11"
SHARD = "000000.tar"


@pytest.fixture
def cache(tmp_path) -> Path:
    """A cache that an older version made: two shards, logits and features."""
    shutil.copytree(STORED / "cache.zarr", tmp_path / "cache.zarr")
    return tmp_path / "cache.zarr"


def change(file: Path, how) -> None:
    if callable(how):
        node = json.loads(file.read_bytes())
        how(node)
        how = json.dumps(node)
    file.write_text(how)


ARRAYS = {
    "pickles": put("codecs", 1, {"name": "numcodecs.pickle", "configuration": {}}),
    "another known codec": put("codecs", 1, {"name": "gzip", "configuration": {"level": 1}}),
    "a codec by address": put("codecs", 1, {"name": "https://evil.example/codec", "configuration": {}}),
    "shards in shards": put("codecs", [{"name": "sharding_indexed", "configuration": {}}]),
    "no codecs": put("codecs", []),
    "codecs, a text": put("codecs", "pickle"),
    "other chunk names": put("chunk_key_encoding", {"name": "default", "configuration": {"separator": "/../../x"}}),
    "v2 chunk names": put("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "."}}),
    "transformers": put("storage_transformers", [{"name": "x"}]),
    "a shape of 10^15": put("shape", 0, 10**15),
    "chunks of 10^15": put("chunk_grid", "configuration", "chunk_shape", 0, 10**15),
    "objects": put("data_type", "object"),
    "zarr v2": put("zarr_format", 2),
    **BAD,
}


@pytest.mark.parametrize("how", ARRAYS.values(), ids=ARRAYS)
def test_hostile_metadata_of_an_array_are_refused_by_reader_and_verify(cache, how):
    change(cache / SHARD / "features/zarr.json", how)
    before = files(cache.parent)
    with little_memory(), pytest.raises(ReskdError, match=f"{SHARD}: array features"):
        CacheReader(cache, ("features",)).block(SHARD, 0, 0)
    assert any(p.shard == SHARD and "features" in p.what for p in verify(cache, load_manifest(cache)))
    assert files(cache.parent) == before


MANIFESTS = {
    "a shard above": put("attributes", "identity", "shards", 0, "name", "../x.tar"),
    "an absolute shard": put("attributes", "identity", "shards", 0, "name", "/tmp/x.tar"),
    "clips": put("attributes", "identity", "shards", 0, "clips", 10**15),
    "clips, a text": put("attributes", "identity", "shards", 0, "clips", "5"),
    "views": put("attributes", "views", 10**12),
    "views, true": put("attributes", "views", True),
    "finished, a fraction": put("attributes", "finalised", 1.5),
    "width": put("attributes", "identity", "targets", "logits", "width", 10**12),
    "negative grid": put("attributes", "identity", "targets", "features", "grid", [2, -4, -4]),
    "a target": put("attributes", "identity", "targets", "../x", {"codec": "uint8", "width": 1}),
    "targets, a list": put("attributes", "identity", "targets", []),
    "classes, a text": put("attributes", "identity", "classes", "abcd"),
    "frames": put("attributes", "identity", "policy", "num_frames", 10**12),
    "policy": put("attributes", "identity", "policy", "run", "x"),
    "constants above": put("attributes", "constants", {"basis/../../../etc/passwd": [1, "x"]}),
    "absolute constants": put("attributes", "constants", {"/etc/passwd": [1, "x"]}),
    "constants of a group above": put("attributes", "constants", {"basis/../../x/zarr.json": [1, "x"]}),
    "constants without a size": put("attributes", "constants", {"basis/zarr.json": "x"}),
    "quarantine": put("attributes", "quarantine", {SHARD: {"x": "y"}}),
    "quarantine, a list": put("attributes", "quarantine", [1]),
    "notes": put("attributes", "notes", "x"),
    "attributes": put("attributes", [1]),
    **{name: text for name, text in BAD.items() if name != "nothing"},
}


@pytest.mark.parametrize("how", MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_is_refused_by_name(cache, how):
    change(cache / "zarr.json", how)
    with little_memory(), pytest.raises(ReskdError, match=r"cache\.zarr"):
        load_manifest(cache)


def test_an_unknown_codec_is_refused_where_it_is_read(cache):
    change(cache / "zarr.json", put("attributes", "identity", "targets", "features", "codec", "pickle"))
    with little_memory(), pytest.raises(ReskdError, match="pickle"):
        CacheReader(cache, ("features",)).block(SHARD, 0, 0)


def test_a_damaged_teacher_time_is_a_message(cache):
    change(cache / "zarr.json", put("attributes", "notes", {"paid": {"seconds": "x", "evil": 1}}))
    assert "teacher time is damaged" in refused("inspect-cache", cache)


GROUPS = {
    "keys, a text": put("attributes", "keys", "abc"),
    "keys, numbers": put("attributes", "keys", [1, 2]),
    "views": put("attributes", "views", -1),
    "views, a text": put("attributes", "views", "2"),
    "files, names alone": put("attributes", "files", {"../../x": "y"}),
    "targets": put("attributes", "targets", {"logits": 3}),
    "quarantine of others": put("attributes", "quarantine", {"../../x": "why"}),
    "quarantine, no text": put("attributes", "quarantine", 3),
    **{name: text for name, text in BAD.items()},
}


@pytest.mark.parametrize("how", GROUPS.values(), ids=GROUPS)
def test_hostile_attributes_of_a_shard_are_refused_by_name(cache, how):
    change(cache / SHARD / "zarr.json", how)
    with little_memory(), pytest.raises(ReskdError, match=SHARD):
        load_group(cache, SHARD)
    assert any(p.shard == SHARD for p in verify(cache, load_manifest(cache)))


def test_a_chunk_that_is_a_bomb_is_refused(cache):
    """A Blosc chunk of some bytes that claims two GB, with a size and a digest that the attributes list."""
    import hashlib
    import struct

    import google_crc32c

    bomb = bytes([2, 1, 0x91, 1]) + struct.pack("<III", 2**31 - 100, 2**31 - 100, 40) + bytes(24)
    bomb += struct.pack("<I", google_crc32c.value(bomb))
    chunk = cache / SHARD / "features/c.0.0.0.0.0.0"
    chunk.write_bytes(bomb)
    digest = [len(bomb), hashlib.sha256(bomb).hexdigest()]
    change(cache / SHARD / "zarr.json", put("attributes", "files", "features/c.0.0.0.0.0.0", digest))
    with little_memory(), pytest.raises(ReskdError, match="array features, view 0 can't be read"):
        CacheReader(cache, ("features",)).block(SHARD, 0, 0)


def test_links_in_a_cache_or_beside_a_file_are_not_written_through(cache, tmp_path):
    """A cache that grows writes into the folders of its arrays, and files under names that are known beforehand."""
    outside = tmp_path / "outside"
    shutil.copytree(cache / SHARD / "features", outside)
    shutil.rmtree(cache / SHARD / "features")
    os.symlink(outside, cache / SHARD / "features")
    (tmp_path / "victim").write_text("mine")
    os.symlink(tmp_path / "victim", cache / ".zarr.json.partial")
    before = {name: (outside / name).read_bytes() for name in files(outside)}
    node = json.loads((cache / "zarr.json").read_bytes())
    node["attributes"]["views"] += 1  # more views are planned
    (cache / "zarr.json").write_text(json.dumps(node))
    manifest, keys = load_manifest(cache), load_group(cache, SHARD)["keys"]
    with pytest.raises(ReskdError, match="features|link"):
        ShardWriter(cache, manifest, SHARD, keys, range(2, 3))
    with pytest.raises(OSError, match="symbolic link"):
        from cache.group import write_attributes

        write_attributes(cache, {})
    assert {name: (outside / name).read_bytes() for name in files(outside)} == before
    assert (tmp_path / "victim").read_text() == "mine"


def test_constants_of_the_manifest_alone_are_read(cache):
    manifest = load_manifest(cache)
    assert all(np.isfinite(values).all() for values in read_constants(cache, manifest).values())


PACKS = {
    "a shard above": put("identity", "shards", 0, "name", "../../x.tar"),
    "files, a text": put("files", SHARD, "bytes", "10"),
    "views": put("identity", "views", "2"),
    "height": put("identity", "height", [16]),
    "finished": put("finished", "yes"),
    "quarantine": put("quarantine", {SHARD: {"x": "y"}}),
    "policy": put("identity", "policy", "num_frames", 10**12),
    **BAD,
}


def stored_pack() -> Path:
    return STORED / "crops"


@pytest.mark.parametrize("how", PACKS.values(), ids=PACKS)
def test_a_hostile_pack_is_refused_by_name(tmp_path, how):
    shutil.copytree(stored_pack(), tmp_path / "pack")
    change(tmp_path / "pack/pack.json", how)
    with little_memory(), pytest.raises(ReskdError, match=r"pack\.json|can't be used|view policy"):
        open_pack(tmp_path / "pack")


PACKED_ROWS = {
    "an offset outside": put("offset", 0, 10**15),
    "a negative offset": put("offset", 0, -1),
    "a huge size": put("size", 0, 10**15),
    "JPEGs outside": put("offsets", 0, 0, -5),
    "JPEGs after the end": put("offsets", 0, 0, 10**12),
    "a frame beyond int32": put("frames", 0, 0, 10**12),
    "frames, texts": put("frames", 0, ["x"]),
    "one checksum less": lambda rows: rows["crc"][0].pop(),
    "a key": put("key", 0, 3),
    "a height": put("height", 0, "x"),
    "no column": lambda rows: rows.pop("key"),
    **BAD,
}


@pytest.mark.parametrize("how", PACKED_ROWS.values(), ids=PACKED_ROWS)
def test_hostile_rows_of_a_pack_are_refused_by_name(tmp_path, how):
    import hashlib

    folder = tmp_path / "pack"
    shutil.copytree(stored_pack(), folder)
    change(folder / f"{SHARD}.rows.json", how)
    digest = hashlib.sha256((folder / f"{SHARD}.rows.json").read_bytes()).hexdigest()
    change(folder / "pack.json", put("files", SHARD, "rows_sha256", digest))
    with little_memory(), pytest.raises(ReskdError, match=r"rows\.json beside it is damaged"):
        open_pack(folder)._row(SHARD, 0)
