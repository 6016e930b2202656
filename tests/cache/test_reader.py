"""A reader gives what was committed, or names what is wrong."""

import dataclasses
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from small_caches import SHARD, content, identity_of, make_cache, tree_of, write_views

from cache.create import create_cache
from cache.errors import ReskdError
from cache.group import load_manifest
from cache.identity import ShardEntry
from cache.manifest import Manifest
from cache.reader import CacheReader, check_join
from cache.store import VerifiedStore, file_digest

SMALL_ARRAYS = ("frames", "box", "flip", "valid", "logits", "scale", "offset")
ARRAYS = (*SMALL_ARRAYS, "features")
NESTED = "a/b/000001.tar"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("intact") / "c.zarr"
    make_cache(path, {SHARD: 130, NESTED: 65}, 3, features=True, invalid=[5])
    return path


@pytest.fixture
def cache(intact, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(intact, tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


def both(path, **options) -> CacheReader:
    return CacheReader(path, ("logits", "features"), **options)


def read_all(reader: CacheReader):
    return [reader.block(s.name, v, b) for s in reader.manifest.identity.shards for v in range(3) for b in range(2)]


def chunk_of(cache, array: str, view: int = 1):
    return next((cache / SHARD / array).glob(f"c.0.{view}*"))


@pytest.mark.parametrize("array", ARRAYS)
def test_a_missing_chunk(cache, array):
    chunk_of(cache, array).unlink()
    both(cache).block(SHARD, 0, 0)
    with pytest.raises(ReskdError, match=rf"{SHARD}: array {array}, chunk c\.0\.1.*missing.*cache-teacher again"):
        both(cache).block(SHARD, 1, 0)


@pytest.mark.parametrize("array", ARRAYS)
def test_an_empty_chunk(cache, array):
    chunk_of(cache, array).write_bytes(b"")
    with pytest.raises(ReskdError, match=rf"{SHARD}: array {array}, chunk c\.0\.1.*it has 0 bytes"):
        both(cache).block(SHARD, 1, 0)


@pytest.mark.parametrize("array", [a for a in ARRAYS if a != "valid"])  # `valid` is the same in all views here
def test_chunks_exchanged_between_views(cache, array):
    one, other = chunk_of(cache, array, 0), chunk_of(cache, array, 1)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    for view in (0, 1):
        with pytest.raises(ReskdError, match=rf"{SHARD}: array {array}, chunk c\.0\.{view}"):
            both(cache).block(SHARD, view, 0)
    both(cache).block(SHARD, 2, 0)


@pytest.mark.parametrize("array", ARRAYS)
def test_flipped_bits(cache, array):
    path = chunk_of(cache, array)
    whole = bytearray(path.read_bytes())
    for position in np.random.default_rng(0).integers(0, 8 * len(whole), 8):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(ReskdError, match=rf"{SHARD}: array {array}, chunk c\.0\.1.*sha256"):
            both(cache).block(SHARD, 1, 0)


@pytest.mark.parametrize("array", ARRAYS)
def test_metadata_of_an_array_missing_damaged_or_another_arrays(cache, array):
    path = cache / SHARD / array / "zarr.json"
    text = path.read_text()
    for damage in ("", "{", text.replace('"regular"', '"irregular"'), text.replace("130,", "129,", 1)):
        path.write_text(damage)
        with pytest.raises(ReskdError, match=rf"{SHARD}: array {array}"):
            both(cache).block(SHARD, 1, 0)
    path.unlink()
    with pytest.raises(ReskdError, match=rf"{SHARD}: array {array}"):
        both(cache).block(SHARD, 1, 0)


def test_a_chunk_lost_after_its_first_read_is_noticed_too(cache):
    reader = both(cache, capacity_blocks=1)
    reader.block(SHARD, 1, 0)
    chunk_of(cache, "features").unlink()
    reader.block(SHARD, 0, 0)
    with pytest.raises(ReskdError, match="array features"):
        reader.block(SHARD, 1, 0)


def test_a_chunk_is_hashed_on_its_first_read_only(cache):
    path = chunk_of(cache, "features")
    whole = path.read_bytes()
    reader = both(cache, capacity_blocks=1)
    reader.block(SHARD, 1, 0)
    reader.block(SHARD, 0, 0)
    path.write_bytes(bytes([*whole[:-4], 0, 0, 0, 0]))  # a wrong crc32c: zarr's own check holds at every read
    with pytest.raises(ReskdError, match=rf"{SHARD}: array features, view 1 can't be read.*ecksum"):
        reader.block(SHARD, 1, 0)


def test_a_group_that_is_lost_or_damaged(cache):
    attributes = cache / SHARD / "zarr.json"
    text = attributes.read_text()
    key = "000000-0007"
    assert key in text
    for damage, message in [
        (text[:100], r"zarr\.json is damaged"),
        (text.replace('"views":3', '"view":3'), "is not a shard of a cache of format 2"),
        (text.replace(key, "000000-9007"), "its keys are damaged"),
        (text.replace('"format":2', '"format":1'), "is not a shard of a cache of format 2"),
    ]:
        assert damage != text
        attributes.write_text(damage)
        with pytest.raises(ReskdError, match=message) as caught:
            both(cache).block(SHARD, 0, 0)
        assert SHARD in str(caught.value)
    shutil.rmtree(cache / SHARD)
    with pytest.raises(ReskdError, match=rf"shard {SHARD} is missing"):
        both(cache).block(SHARD, 0, 0)
    assert both(cache).block(NESTED, 0, 0).valid.sum() == 63


def test_groups_exchanged_between_shards(tmp_path):
    make_cache(tmp_path / "c", {"0.tar": 3, "1.tar": 3})
    for source, target in (("0.tar", "x"), ("1.tar", "0.tar"), ("x", "1.tar")):
        (tmp_path / "c" / source).rename(tmp_path / "c" / target)
    with pytest.raises(ReskdError, match=r"0\.tar was made by another run"):
        CacheReader(tmp_path / "c").block("0.tar", 0, 0)


@pytest.mark.parametrize(("array", "fill"), [("scale", np.nan), ("offset", np.inf), ("features", np.nan)])
def test_targets_that_are_not_finite_under_a_valid_row(cache, array, fill):
    """A cache made by another program: its chunk files are in order, its numbers are not."""
    zarr.open_array(cache / SHARD / array, mode="r+")[70, 1] = fill
    attributes = cache / SHARD / "zarr.json"
    node = json.loads(attributes.read_text())
    chunk = next((cache / SHARD / array).glob("c.1.1*" if array == "features" else "c.0.1*"))
    node["attributes"]["files"][f"{array}/{chunk.name}"] = file_digest(chunk)
    attributes.write_text(json.dumps(node))
    both(cache).block(SHARD, 1, 0)
    with pytest.raises(
        ReskdError, match=rf"{SHARD}, view 1, row 70 \('000000-0070'\): array .*{array}.*NaN, infinity or nothing"
    ):
        both(cache).block(SHARD, 1, 1)


def test_views_and_blocks_that_are_not_there(cache):
    reader = CacheReader(cache)
    for view in (3, -1):
        with pytest.raises(ReskdError, match=rf"{SHARD}: view {view} is not committed, the shard has 3"):
            reader.block(SHARD, view, 0)
    for block in (3, -1):
        with pytest.raises(ReskdError, match=rf"no block {block} in 130 rows"):
            reader.block(SHARD, 0, block)
    with pytest.raises(ReskdError, match=r"'z\.tar' is not in the cache's shard list"):
        reader.block("z.tar", 0, 0)


def test_a_reader_does_not_see_a_cache_grow(cache):
    reader = CacheReader(cache)
    reader.block(SHARD, 0, 0)
    manifest = create_cache(cache, Manifest(reader.manifest.identity, 4))
    write_views(cache, manifest, SHARD, range(3, 4))
    assert reader.manifest.views == 3
    with pytest.raises(ReskdError, match="view 3 is not committed"):
        reader.block(SHARD, 3, 0)
    assert CacheReader(cache).block(SHARD, 3, 0).valid.all()


def test_targets_that_the_cache_does_not_hold(tmp_path):
    make_cache(tmp_path / "c", {SHARD: 3})
    with pytest.raises(ReskdError, match=r"c holds no features, only logits"):
        CacheReader(tmp_path / "c", ("logits", "features"))


def test_only_what_is_asked_for_is_read(cache):
    chunk_of(cache, "logits").unlink()
    chunk_of(cache, "features").unlink()
    block = CacheReader(cache, ()).block(SHARD, 1, 0)
    assert block.logits is None and block.features is None and block.frames.shape == (64, 2)


def test_opening_reads_no_group(cache):
    for shard in (SHARD, NESTED):
        shutil.rmtree(cache / shard)
    assert CacheReader(cache).manifest.views == 3


def test_what_is_not_a_cache(tmp_path):
    with pytest.raises(ReskdError, match=r"nowhere is not a cache.*no such folder.*run cache-teacher"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(ReskdError, match=r"it has no zarr\.json"):
        load_manifest(tmp_path)
    (tmp_path / "zarr.json").write_text('{"node_type": "group", "attributes": {}}')
    with pytest.raises(ReskdError, match="not a cache of reskd"):
        CacheReader(tmp_path)


def test_a_whole_view(cache):
    reader = both(cache)
    identity, whole = reader.manifest.identity, reader.view(SHARD, 2)
    wanted = content(identity, SHARD, 2, invalid=[5])
    assert len(whole.keys) == 130 and whole.features is None
    assert np.array_equal(whole.frames, wanted["frames"]) and np.array_equal(whole.valid, wanted["valid"])
    blocks = [reader.block(SHARD, 2, b) for b in range(3)]
    assert np.array_equal(whole.logits, np.concatenate([b.logits for b in blocks]))


@pytest.mark.parametrize("capacity", [1, 5, 1000])
def test_few_or_many_blocks_in_memory_serve_the_same_rows(intact, capacity):
    reader, fresh = both(intact, capacity_blocks=capacity), {}
    sizes = {SHARD: 3, NESTED: 2}
    asked = [(s, v, b) for s, n in sizes.items() for v in range(3) for b in range(n)]
    for i in np.random.default_rng(0).integers(0, len(asked), 60):
        block = reader.block(*asked[i])
        if asked[i] not in fresh:
            fresh[asked[i]] = both(intact).block(*asked[i])
        assert block.keys == fresh[asked[i]].keys
        for field in dataclasses.fields(block)[1:]:
            assert np.array_equal(getattr(block, field.name), getattr(fresh[asked[i]], field.name)), field.name
    assert len(fresh) == len(asked)


def test_a_block_in_memory_cannot_be_changed(intact):
    block = both(intact).block(SHARD, 0, 0)
    for field in dataclasses.fields(block)[1:]:
        with pytest.raises(ValueError, match="read-only"):
            getattr(block, field.name)[0] = 0


def digest_of(reader: CacheReader) -> list[bytes]:
    return [a.tobytes() for block in read_all(reader) for a in (block.frames, block.box, block.logits, block.features)]


def _serve(reader, queue):
    queue.put(digest_of(reader))


@pytest.mark.parametrize("method", ["fork", "forkserver"])  # to the latter, all is pickled, as to a spawned one
def test_workers_of_every_kind_read_alike(intact, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    reader = both(intact)
    here = digest_of(reader)  # so the reader is already open, its event loop running, when the workers start
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_serve, args=(reader, queue))
    worker.start()
    assert queue.get(timeout=60) == here
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_readers_and_stores_pickle(intact):
    reader = both(intact, capacity_blocks=7)
    read_all(reader)
    text = pickle.dumps(reader)
    assert len(text) < 5000  # neither blocks nor keys travel
    assert digest_of(pickle.loads(text)) == digest_of(reader)
    store = pickle.loads(pickle.dumps(VerifiedStore(intact / SHARD, {"a/c.0": [1, "x"]})))
    assert store.root == intact / SHARD and store.files == {"a/c.0": [1, "x"]} and store.read_only


def test_reading_changes_no_file(intact):
    before = tree_of(intact)
    read_all(both(intact))
    assert tree_of(intact) == before


def test_the_package_needs_neither_torch_nor_video(intact):
    program = (
        "import sys; from cache.reader import CacheReader; import cache.writer, cache.view\n"
        f"CacheReader({str(intact)!r}).block({SHARD!r}, 0, 0)\n"
        "print(sorted({'torch', 'av', 'decord', 'webdataset', 'stages'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def entries(clips: dict[str, int]) -> tuple[ShardEntry, ...]:
    return identity_of(clips).shards


def test_joining_the_data_set_that_the_cache_was_made_from():
    manifest = Manifest(identity_of({SHARD: 3, NESTED: 4}), 1)
    check_join(manifest, manifest.identity.shards)
    check_join(manifest, manifest.identity.shards[::-1])
    check_join(manifest, manifest.identity.shards[:1])
    packed = [dataclasses.replace(e, bytes=1, sha256="other") for e in manifest.identity.shards]
    check_join(manifest, packed)  # the same clips at another resolution


def test_joining_another_data_set_names_the_offender():
    manifest = Manifest(identity_of({SHARD: 3, NESTED: 4}), 1)
    with pytest.raises(ReskdError, match=r"shard x\.tar is in the data set and not in the cache \(1 of 3 shards"):
        check_join(manifest, (*manifest.identity.shards, *entries({"x.tar": 1})))
    with pytest.raises(ReskdError, match=rf"shard {NESTED} has 5 clips in the data set, 4 in the cache"):
        check_join(manifest, entries({SHARD: 3, NESTED: 5}))
    other = dataclasses.replace(manifest.identity.shards[0], keys_sha256="0" * 64)
    with pytest.raises(ReskdError, match=rf"shard {SHARD} has other keys, or another order"):
        check_join(manifest, (other,))
