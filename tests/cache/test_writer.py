"""What a writer puts on disk, and what it refuses."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import zarr
from small_caches import (
    CLASSES,
    GRID,
    SHARD,
    WIDTH,
    content,
    identity_of,
    keys_of,
    make_cache,
    tree_of,
    write_views,
)

from cache.create import create_cache
from cache.errors import ReskdError
from cache.finalise import finalise
from cache.group import load_manifest
from cache.manifest import FORMAT, Manifest
from cache.reader import CacheReader
from cache.view import BLOCK, ViewPolicy
from cache.writer import ShardWriter
from tests.runs import committed_views

CLIPS = (1, 63, 64, 65, 130)


def assert_holds(path, identity, shard, views, targets, invalid=()):
    """Every row of every view reads back as it was handed in."""
    reader, clips = CacheReader(path, targets), identity.shard(shard).clips
    for view, block in itertools.product(range(views), range(-(-clips // BLOCK))):
        wanted, rows = content(identity, shard, view, invalid), slice(block * BLOCK, (block + 1) * BLOCK)
        got = reader.block(shard, view, block)
        assert list(got.keys) == keys_of(shard, clips)[rows]
        for name in ("frames", "box", "flip", "valid"):
            assert np.array_equal(getattr(got, name), wanted[name][rows]), name
        valid = got.valid
        assert got.frames.dtype == np.int32 and got.box.dtype == np.float32 and got.logits.dtype == np.float32
        spread = np.ptp(wanted["logits"], axis=1)[rows].max()
        assert np.abs(got.logits - wanted["logits"][rows])[valid].max(initial=0) <= spread / 255 / 2 * 1.01
        assert not got.logits[~valid].any()
        if "features" in targets:
            assert np.array_equal(got.features[valid], wanted["features"][rows][valid].astype(np.float16))
            assert not got.features[~valid].any() and got.features.shape[1:] == (*GRID, WIDTH)
        else:
            assert got.features is None


@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize(("views", "features"), [(1, True), (3, True), (2, False)])
def test_round_trip(tmp_path, clips, views, features):
    manifest = make_cache(tmp_path / "c.zarr", {SHARD: clips}, views, features=features)
    targets = ("logits", "features") if features else ("logits",)
    assert_holds(tmp_path / "c.zarr", manifest.identity, SHARD, views, targets)
    assert manifest.finalised == manifest.views == views and manifest.quarantine == {}
    assert load_manifest(tmp_path / "c.zarr") == manifest


@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_the_files_do_not_depend_on_the_batches(tmp_path, batch):
    for name, size in (("a", 48), ("b", batch)):
        manifest = create_cache(tmp_path / name, Manifest(identity_of({SHARD: 65}, features=True), 2))
        write_views(tmp_path / name, manifest, SHARD, range(2), invalid=[3, 64], batch=size)
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "b")


def test_the_same_view_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_cache(tmp_path / name, {SHARD: 65, "b/1.tar": 3}, 2, features=True, invalid=[1])
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "b")


@pytest.mark.parametrize("clips", [1, 65])
def test_more_views_leave_the_old_files_alone_and_end_as_if_written_at_once(tmp_path, clips):
    path, identity = tmp_path / "c.zarr", identity_of({SHARD: clips}, features=True)
    make_cache(path, {SHARD: clips}, 2, features=True)
    before = tree_of(path)
    manifest = create_cache(path, Manifest(identity, 5))
    assert (manifest.views, manifest.finalised) == (5, 2)  # training may go on with the two meanwhile
    write_views(path, manifest, SHARD, range(2, 3))
    assert_holds(path, identity, SHARD, 3, ("logits", "features"))
    write_views(path, manifest, SHARD, range(3, 5))
    assert finalise(path).finalised == 5
    assert_holds(path, identity, SHARD, 5, ("logits", "features"))
    after = tree_of(path)
    assert {name: after[name] for name in before if not name.endswith("zarr.json")} == {
        name: digest for name, digest in before.items() if not name.endswith("zarr.json")
    }
    make_cache(tmp_path / "whole", {SHARD: clips}, 5, features=True)
    assert after == tree_of(tmp_path / "whole")


def test_every_chunk_is_a_listed_file_even_when_it_equals_the_fill_value(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = create_cache(path, Manifest(identity_of({SHARD: 65}), 1))
    writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, 65), range(1))
    columns = content(manifest.identity, SHARD, 0) | {"flip": np.zeros(65, bool)}
    writer.write(0, slice(0, 65), **columns)
    writer.commit({}, {})
    assert (path / SHARD / "flip" / "c.0.0").stat().st_size > 0
    files = json.loads((path / SHARD / "zarr.json").read_text())["attributes"]["files"]
    on_disk = {p.relative_to(path / SHARD).as_posix() for p in (path / SHARD).rglob("c.*")}
    assert on_disk == files.keys() and len(files) == 7


def test_plain_zarr_reads_a_cache(tmp_path):
    manifest = make_cache(tmp_path / "c.zarr", {SHARD: 65}, 2, features=True)
    root = zarr.open_group(tmp_path / "c.zarr", mode="r")
    assert root.attrs["identity"]["decoder"] == "decord 0.6.0"
    group = root[SHARD]
    assert set(group.array_keys()) == {"frames", "box", "flip", "valid", "logits", "scale", "offset", "features"}
    assert group["logits"].shape == (65, 2, CLASSES) and group["logits"].chunks == (65, 1, CLASSES)
    assert group["features"].shape == (65, 2, WIDTH, *GRID) and group["features"].chunks == (64, 1, WIDTH, *GRID)
    assert [type(c).__name__ for c in group["features"].compressors] == ["BloscCodec", "Crc32cCodec"]
    wanted = content(manifest.identity, SHARD, 1)
    assert np.array_equal(np.moveaxis(group["features"][:, 1], 1, -1), wanted["features"].astype(np.float16))


def test_rows_that_are_not_valid_are_quarantined_by_row_at_the_root(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = make_cache(path, {SHARD: 65, "b/1.tar": 4}, 2, features=True, invalid=[0, 3])
    reasons = {0: "no video stream", 3: "no video stream"}
    assert manifest.quarantine == {SHARD: reasons, "b/1.tar": reasons}
    assert_holds(path, manifest.identity, "b/1.tar", 2, ("logits", "features"), invalid=[0, 3])


def test_a_shard_of_nothing_but_bad_clips(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = make_cache(path, {SHARD: 3}, 2, features=True, invalid=[0, 1, 2])
    assert_holds(path, manifest.identity, SHARD, 2, ("logits", "features"), invalid=[0, 1, 2])
    assert list(manifest.quarantine[SHARD]) == [0, 1, 2]


def test_what_an_invalid_row_holds_is_not_looked_at(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = create_cache(path, Manifest(identity_of({SHARD: 3}, features=True), 1))
    columns = content(manifest.identity, SHARD, 0, invalid=[1])
    columns["logits"][1], columns["features"][1] = np.nan, np.inf
    writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, 3), range(1))
    writer.write(0, slice(0, 3), **columns)
    writer.commit({f"{SHARD[:6]}-0001": "broken"}, {})
    assert_holds(path, manifest.identity, SHARD, 1, ("logits", "features"), invalid=[1])


def test_reasons_of_later_views_are_added(tmp_path):
    path = tmp_path / "c.zarr"
    make_cache(path, {SHARD: 3}, 1, invalid=[1])
    manifest = create_cache(path, Manifest(identity_of({SHARD: 3}), 2))
    writer, keys = ShardWriter(path, manifest, SHARD, keys_of(SHARD, 3), range(1, 2)), keys_of(SHARD, 3)
    writer.write(1, slice(0, 3), **content(manifest.identity, SHARD, 1, invalid=[1, 2]))
    writer.commit({keys[1]: "another reason", keys[2]: "bit rot"}, {keys[0]: "decord failed"})
    assert finalise(path).quarantine == {SHARD: {1: "no video stream", 2: "bit rot"}}
    attributes = json.loads((path / SHARD / "zarr.json").read_text())["attributes"]
    assert attributes["fallbacks"] == {keys[0]: "decord failed"}


def test_what_is_not_committed_is_not_there(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = create_cache(path, Manifest(identity_of({SHARD: 65}, features=True), 2))
    writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, 65), range(2))
    writer.write(0, slice(0, 65), **content(manifest.identity, SHARD, 0))
    assert committed_views(path, SHARD) == 0
    with pytest.raises(
        ReskdError, match=rf"not finished: 1 of 1 shards.*{SHARD} \(2 views of features and logits\).*cache-teacher"
    ):
        finalise(path)
    with pytest.raises(ReskdError, match=f"{SHARD} is missing"):
        CacheReader(path).block(SHARD, 0, 0)
    with pytest.raises(AssertionError, match="unwritten rows"):
        writer.commit({}, {})


def test_an_aborted_writer_leaves_nothing(tmp_path):
    path, keys = tmp_path / "c.zarr", keys_of(SHARD, 65)
    manifest = create_cache(path, Manifest(identity_of({SHARD: 65}, features=True), 1))
    writer = ShardWriter(path, manifest, SHARD, keys, range(1))
    writer.write(0, slice(0, 65), **content(manifest.identity, SHARD, 0))
    writer.abort()
    assert [name for name in tree_of(path) if name not in ("zarr.json", ".tmp")] == []
    write_views(path, manifest, SHARD, range(1))
    manifest = create_cache(path, Manifest(manifest.identity, 3))
    before = tree_of(path)
    writer = ShardWriter(path, manifest, SHARD, keys, range(1, 3))
    writer.write(1, slice(0, 65), **content(manifest.identity, SHARD, 1))
    writer.abort()
    assert tree_of(path) == before


def test_an_abort_after_the_commit_takes_nothing_back(tmp_path):
    """As when an interrupt falls between the commit and the caller's next line."""
    path, keys = tmp_path / "c.zarr", keys_of(SHARD, 3)
    manifest = create_cache(path, Manifest(identity_of({SHARD: 3}, features=True), 2))
    for views in (range(1), range(1, 2)):
        writer = ShardWriter(path, manifest, SHARD, keys, views)
        writer.write(views.start, slice(0, 3), **content(manifest.identity, SHARD, views.start))
        writer.commit({}, {})
        before = tree_of(path)
        writer.abort()
        assert tree_of(path) == before
    assert_holds(path, manifest.identity, SHARD, 2, ("logits", "features"))


def test_blocks_of_maps_reach_the_disk_when_full(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = create_cache(path, Manifest(identity_of({SHARD: 130}, features=True), 1))
    writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, 130), range(1))
    columns, chunks = content(manifest.identity, SHARD, 0), path / ".tmp" / SHARD / "features"
    for low, high, full in ((0, 63, 0), (63, 65, 1), (65, 129, 2), (129, 130, 3)):
        writer.write(0, slice(low, high), **{name: a[low:high] for name, a in columns.items()})
        assert len(list(chunks.glob("c.*"))) == full


def rewritten(**fields):
    return Manifest(identity_of({SHARD: 3}, **fields), 2)


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (rewritten(decoder="pyav 18.1.0"), r'decoder: the cache has "decord 0\.6\.0", this run wants "pyav 18\.1\.0"'),
        (rewritten(policy=ViewPolicy(seed=5, num_frames=2)), r"policy\.seed: the cache has 0, this run wants 5"),
        (rewritten(codec="float16"), r"targets\.logits\.codec"),
        (rewritten(classes=tuple("abcde")), "classes: class 0 is 'class 0' in the cache and 'a' in this run"),
        (Manifest(identity_of({SHARD: 4}), 2), rf"shards: 1 of 1 changed: {SHARD}: clips 3 in the cache, 4"),
    ],
)
def test_another_identity_is_refused_naming_both_sides_and_the_remedy(tmp_path, wanted, named):
    path = tmp_path / "c.zarr"
    make_cache(path, {SHARD: 3})
    before = tree_of(path)
    with pytest.raises(ReskdError, match=named) as caught:
        create_cache(path, wanted)
    assert str(path) in str(caught.value) and "another output folder" in str(caught.value)
    assert tree_of(path) == before


def test_opening_again_keeps_what_is_there(tmp_path):
    path, identity = tmp_path / "c.zarr", identity_of({SHARD: 3})
    made = create_cache(path, Manifest(identity, 2, packages={"torch": "2.15"}))
    assert create_cache(path, Manifest(identity, 2, packages={"torch": "3.0"})) == made
    with pytest.raises(ReskdError, match=r"planned for 2 views, this run wants 1.*at least 2"):
        create_cache(path, Manifest(identity, 1))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ReskdError, match=r"photos holds something else"):
        create_cache(tmp_path / "photos", rewritten())
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(ReskdError, match="not a cache of reskd"):
        create_cache(tmp_path / "other.zarr", rewritten())
    assert create_cache(tmp_path / "deep" / "er" / "c.zarr", rewritten()).views == 2


def test_other_keys_than_the_manifests_are_refused(tmp_path):
    manifest = create_cache(tmp_path, rewritten())
    for keys in (keys_of(SHARD, 3)[::-1], keys_of(SHARD, 2), [*keys_of(SHARD, 3), "x"]):
        with pytest.raises(ReskdError, match=rf"shard {SHARD}: its {len(keys)} keys are not the 3"):
            ShardWriter(tmp_path, manifest, SHARD, keys, range(2))
    with pytest.raises(ReskdError, match=r"'y\.tar' is not in the cache's shard list"):
        ShardWriter(tmp_path, manifest, "y.tar", ["a"], range(2))


@pytest.mark.parametrize("views", [range(0, 1), range(3, 4), range(2, 9)])
def test_views_that_are_not_the_next_are_refused(tmp_path, views):
    make_cache(tmp_path / "c.zarr", {SHARD: 3}, 2)
    manifest = create_cache(tmp_path / "c.zarr", Manifest(identity_of({SHARD: 3}), 4))
    with pytest.raises(ReskdError, match=r"has 2 views of 4; views .* are not the next"):
        ShardWriter(tmp_path / "c.zarr", manifest, SHARD, keys_of(SHARD, 3), views)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", np.zeros((3, CLASSES + 1), np.float32), rf"logits have shape \[3, 6\].* says \[3, {CLASSES}\]"),
        ("features", np.zeros((3, 1, 3, 3, WIDTH), np.float32), r"features have shape \[3, 1, 3, 3, 3\]"),
        ("features", np.zeros((3, *GRID, 9), np.float32), r"features have shape \[3, 1, 2, 2, 9\]"),
        ("frames", np.zeros((3, 9), np.int32), r"frames have shape \[3, 9\]"),
        (
            "logits",
            np.full((3, CLASSES), np.nan, np.float32),
            rf"{SHARD}, view 0, clips 000000-0000 to 000000-0002.*NaN",
        ),
        ("features", np.full((3, *GRID, WIDTH), 1e6, np.float32), r"features: 1e\+06 overflows float16"),
    ],
)
def test_targets_that_cannot_be_stored_are_refused(tmp_path, name, value, message):
    manifest = create_cache(tmp_path, Manifest(identity_of({SHARD: 3}, features=True), 1))
    writer = ShardWriter(tmp_path, manifest, SHARD, keys_of(SHARD, 3), range(1))
    with pytest.raises(ReskdError, match=message):
        writer.write(0, slice(0, 3), **content(manifest.identity, SHARD, 0) | {name: value})


def test_an_unknown_codec_is_refused_before_any_work(tmp_path):
    with pytest.raises(ReskdError, match="'logits' can't be stored as 'top10'"):
        create_cache(tmp_path / "c.zarr", rewritten(codec="top10"))
    assert not (tmp_path / "c.zarr").exists()


def test_a_group_of_another_run_is_refused(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_cache(ours, {SHARD: 3})
    make_cache(theirs, {SHARD: 3}, decoder="pyav 18.1.0")
    (ours / SHARD).rename(tmp_path / "away")
    (theirs / SHARD).rename(ours / SHARD)
    with pytest.raises(ReskdError, match=rf"{SHARD} was made by another run"):
        finalise(ours)
    with pytest.raises(ReskdError, match=rf"{SHARD} was made by another run"):
        CacheReader(ours).block(SHARD, 0, 0)
    manifest = create_cache(ours, Manifest(identity_of({SHARD: 3}), 3))
    with pytest.raises(ReskdError, match=rf"{SHARD} was made by another run"):
        ShardWriter(ours, manifest, SHARD, keys_of(SHARD, 3), range(2, 3))


def test_another_format_version_is_refused(tmp_path):
    path = tmp_path / "c.zarr"
    manifest = make_cache(path, {SHARD: 3})
    old = dataclasses.replace(manifest.identity, format=FORMAT + 1)
    node = json.loads((path / "zarr.json").read_text())
    node["attributes"] = dataclasses.replace(manifest, identity=old).to_json()
    (path / "zarr.json").write_text(json.dumps(node))
    for read in (load_manifest, CacheReader, finalise, lambda p: create_cache(p, manifest)):
        with pytest.raises(ReskdError, match=rf"c\.zarr: the cache has format version {FORMAT + 1}.*reads {FORMAT}"):
            read(path)
