"""Shards and targets that are added to a cache, and what it refuses to grow by."""

import dataclasses
import itertools

import numpy as np
import pytest
from small_caches import CONSTANTS, SHARD, content, identity_of, keys_of, make_cache, tree_of, write_views

from cache.create import check_cache, create_cache
from cache.differences import differing_identities
from cache.errors import ReskdError
from cache.finalise import finalise
from cache.group import load_manifest
from cache.growth import grown_identity, missing_work
from cache.manifest import Manifest
from cache.reader import CacheReader, check_join
from cache.writer import ShardWriter

NEW, CLIPS = "000-before.tar", 66
BOTH = ("features", "logits")


def wanted(*shards: str, views: int = 2, features: bool = True, **fields) -> Manifest:
    return Manifest(identity_of(dict.fromkeys(shards, CLIPS), features=features, **fields), views)


def logits_alone(path) -> dict[str, str]:
    """A cache of one shard without features; returns its files."""
    make_cache(path, {SHARD: CLIPS}, 2, invalid=[3])
    return tree_of(path)


def chunks(tree: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in tree.items() if "/c." in name}


def fill(path, manifest: Manifest) -> None:
    for entry in manifest.identity.shards:
        for views, _ in missing_work(path, manifest, entry.name):
            write_views(path, manifest, entry.name, views, invalid=[3])


def whole(path, *shards: str, views: int = 2) -> dict[str, str]:
    """A cache made at once; its files."""
    fill(path, create_cache(path, wanted(*shards, views=views), CONSTANTS))
    finalise(path)
    return tree_of(path)


# ---- targets ----


def test_a_target_is_added_to_old_views_first_then_views_in_all_targets(tmp_path):
    path = tmp_path / "c.zarr"
    before = logits_alone(path)
    manifest = create_cache(path, wanted(SHARD, views=3), CONSTANTS)
    assert (manifest.views, manifest.finalised, manifest.finalised_targets) == (3, 2, ("logits",))
    work = missing_work(path, manifest, SHARD)
    assert work == [(range(2), ("features",)), (range(2, 3), BOTH)]
    with pytest.raises(ReskdError, match=r"views 2 to 2 are not the next"):
        ShardWriter(path, manifest, SHARD, keys_of(SHARD, CLIPS), range(2, 3))
    with pytest.raises(ReskdError, match=r"views 0 to 0 are not the next"):  # of a new target, all views or none
        ShardWriter(path, manifest, SHARD, keys_of(SHARD, CLIPS), range(1))
    write_views(path, manifest, SHARD, range(2), invalid=[3])
    assert missing_work(path, manifest, SHARD) == work[1:]
    with pytest.raises(ReskdError, match=rf"not finished: 1 of 1 shards.*{SHARD} \(1 views of features and logits\)"):
        finalise(path)
    write_views(path, manifest, SHARD, range(2, 3), invalid=[3])
    done = finalise(path)
    assert (done.finalised, done.finalised_targets, done.finalised_shards) == (3, BOTH, 1)
    after = tree_of(path)
    assert chunks(before).items() <= after.items()
    assert after == whole(tmp_path / "whole.zarr", SHARD, views=3)


def test_readers_of_what_was_there_are_not_disturbed(tmp_path):
    path = tmp_path / "c.zarr"
    logits_alone(path)
    early = CacheReader(path)
    early.block(SHARD, 0, 0)
    manifest = create_cache(path, wanted(NEW, SHARD), CONSTANTS)
    late = CacheReader(path)  # of the grown manifest, before anything is written
    for reader in (early, late):
        assert np.flatnonzero(~reader.block(SHARD, 1, 0).valid).tolist() == [3]
    with pytest.raises(
        ReskdError, match=rf"shard {SHARD}: its features are not committed: run cache-teacher to the end"
    ):
        CacheReader(path, BOTH).block(SHARD, 0, 0)
    with pytest.raises(ReskdError, match=rf"shard {NEW} is missing"):
        late.block(NEW, 0, 0)
    fill(path, manifest)
    for reader in (early, late, CacheReader(path)):
        assert np.array_equal(reader.block(SHARD, 0, 1).logits, CacheReader(path).block(SHARD, 0, 1).logits)
    with pytest.raises(ReskdError, match=rf"'{NEW}' is not in the cache's shard list"):
        early.block(NEW, 0, 0)  # its manifest is the one that it began with
    assert CacheReader(path, BOTH).block(NEW, 1, 1).features.any()


def test_a_row_that_lacks_the_new_target_is_in_quarantine_and_the_rest_of_it_stays(tmp_path):
    path = tmp_path / "c.zarr"
    before = logits_alone(path)
    manifest, keys = create_cache(path, wanted(SHARD), CONSTANTS), keys_of(SHARD, CLIPS)

    def write(quarantine: dict[str, str]) -> None:
        writer = ShardWriter(path, manifest, SHARD, keys, range(2))
        for view in range(2):
            columns = content(manifest.identity, SHARD, view, [3])
            del columns["logits"]
            finite = np.full(CLIPS, True)
            if view == 1:
                columns["features"][65], finite[65] = np.nan, False
            writer.write(view, slice(0, CLIPS), finite=finite, **columns)
        try:
            writer.commit(quarantine, {})
        finally:
            writer.abort()

    with pytest.raises(AssertionError):  # without a reason
        write({})
    write({keys[65]: "not finite"})
    assert finalise(path).quarantine == {SHARD: {3: "no video stream", 65: "not finite"}}
    assert chunks(before).items() <= tree_of(path).items()
    assert np.flatnonzero(~CacheReader(path, BOTH).block(SHARD, 1, 1).valid).tolist() == [1]
    assert CacheReader(path, BOTH).block(SHARD, 0, 1).valid.all() and CacheReader(path).block(SHARD, 1, 1).valid.all()


def test_a_target_of_other_views_is_refused_and_nothing_stored_is_lost(tmp_path):
    path = tmp_path / "c.zarr"
    before = logits_alone(path)
    manifest = create_cache(path, wanted(SHARD), CONSTANTS)
    rows = slice(0, CLIPS)
    for name, lost in itertools.product(("frames", "box", "flip", "valid"), (False, True)):
        columns = content(manifest.identity, SHARD, 0, [3])
        del columns["logits"]
        if name == "valid":
            columns["valid"] = np.arange(CLIPS) != (7 if lost else -1)
            match = r"clip '000000-0007': it is unreadable now.*restore the shard" if lost else None
        else:
            columns[name] = columns[name].copy()
            columns[name][3 if not lost else 8] = 1 - columns[name][3 if not lost else 8]
            match = f"view 0: {name} are not those stored" if lost else None
        writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, CLIPS), range(2))
        if match:
            with pytest.raises(ReskdError, match=match):
                writer.write(0, rows, **columns)
        else:  # of a row that is quarantined nothing is stored, and nothing compared
            writer.write(0, rows, **columns)
        writer.abort()
        assert {n: d for n, d in tree_of(path).items() if n.startswith(SHARD)} == {
            n: d for n, d in before.items() if n.startswith(SHARD)
        }


def test_what_a_killed_addition_left_is_written_over(tmp_path):
    path = tmp_path / "c.zarr"
    logits_alone(path)
    manifest = create_cache(path, wanted(SHARD), CONSTANTS)
    writer = ShardWriter(path, manifest, SHARD, keys_of(SHARD, CLIPS), range(2))
    columns = content(manifest.identity, SHARD, 0, [3])
    del columns["logits"]
    writer.write(0, slice(0, CLIPS), **columns | {"features": columns["features"] + 1})
    del writer  # no abort
    assert list((path / SHARD / "features").glob("c.*"))
    fill(path, manifest)
    finalise(path)
    assert tree_of(path) == whole(tmp_path / "whole.zarr", SHARD)


def test_targets_are_neither_taken_away_nor_changed(tmp_path):
    path = tmp_path / "c.zarr"
    make_cache(path, {SHARD: CLIPS}, 2, features=True)
    before = tree_of(path)
    with pytest.raises(ReskdError, match=r'targets\.features\.codec: the cache has "float16", this run wants nothing'):
        create_cache(path, wanted(SHARD, features=False))
    other = wanted(SHARD)
    settings = other.identity.targets["features"] | {"codec": "int8"}
    targets = other.identity.targets | {"features": settings}
    with pytest.raises(ReskdError, match=r'features\.codec: the cache has "float16", this run wants "int8"'):
        create_cache(path, dataclasses.replace(other, identity=dataclasses.replace(other.identity, targets=targets)))
    assert tree_of(path) == before


def test_a_group_with_a_target_of_other_settings_is_refused(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_cache(ours, {SHARD: 3})
    make_cache(theirs, {SHARD: 3}, codec="float16")
    (ours / SHARD).rename(tmp_path / "away")
    (theirs / SHARD).rename(ours / SHARD)
    for read in (finalise, lambda path: CacheReader(path).block(SHARD, 0, 0)):
        with pytest.raises(ReskdError, match=rf"{SHARD} was made by another run.*encoding"):
            read(ours)


# ---- shards ----


def test_shards_are_added_after_the_old_ones_which_stay_byte_for_byte(tmp_path):
    path = tmp_path / "c.zarr"
    first = whole(path, SHARD)
    manifest = create_cache(path, wanted(NEW, SHARD), CONSTANTS)
    assert [e.name for e in manifest.identity.shards] == [SHARD, NEW]
    assert (manifest.finalised_shards, manifest.finalised, list(manifest.quarantine)) == (1, 2, [SHARD])
    fill(path, manifest)
    done = finalise(path)
    assert done.finalised_shards == 2 and done.quarantine.keys() == {NEW, SHARD}
    after = tree_of(path)
    assert {n: d for n, d in first.items() if n != "zarr.json"}.items() <= after.items()  # groups as they were, too
    assert create_cache(path, wanted(NEW, SHARD), CONSTANTS) == done  # in another order: the same cache
    assert create_cache(path, wanted(SHARD, NEW), CONSTANTS) == done
    assert tree_of(path) == after == whole(tmp_path / "whole.zarr", SHARD, NEW)


def test_shards_are_not_taken_away_and_a_cache_of_more_serves_a_data_set_of_fewer(tmp_path):
    path = tmp_path / "c.zarr"
    whole(path, SHARD, NEW)
    with pytest.raises(ReskdError, match=rf"shards: 1 only in the cache \(of 2 and 1\): {NEW}"):
        create_cache(path, wanted(SHARD), CONSTANTS)
    check_join(load_manifest(path), wanted(SHARD).identity.shards)


def test_nothing_is_added_by_another_teacher_policy_decoder_or_class_list(tmp_path):
    path = tmp_path / "c.zarr"
    before = logits_alone(path)
    teacher = identity_of({SHARD: 1}).teacher | {"weights_sha256": "12" * 32}
    for fields, named in [
        ({"teacher": teacher}, f'teacher.weights_sha256: the cache has "{"cd" * 32}", this run wants "{"12" * 32}"'),
        ({"decoder": "pyav"}, "decoder: the cache has"),
        ({"classes": tuple("abcde")}, "classes: class 0 is"),
    ]:
        with pytest.raises(ReskdError, match=named):
            create_cache(path, wanted(NEW, SHARD, **fields), CONSTANTS)
    assert tree_of(path) == before


def test_checking_writes_nothing_and_says_what_would_be(tmp_path):
    path = tmp_path / "c.zarr"
    before = logits_alone(path)
    grown_to = check_cache(path, wanted(NEW, SHARD, views=4))
    assert grown_to.views == 4 and grown_to.finalised == 2
    assert [e.name for e in grown_to.identity.shards] == [SHARD, NEW] and {*grown_to.identity.targets} == {*BOTH}
    assert tree_of(path) == before


def test_a_grown_identity_keeps_what_differs_in_sight():
    stored, more = wanted(SHARD, features=False).identity, wanted(NEW, SHARD).identity
    identity, lines = grown_identity(stored, more)
    assert lines == [] and differing_identities(identity, more) == ["shards: the same 2 shards in another order"]
    other = dataclasses.replace(more, shards=(more.shards[0], dataclasses.replace(more.shards[1], bytes=7)))
    assert grown_identity(stored, other)[1] == [
        f"shards: 1 of 1 changed: {SHARD}: bytes 1066 in the cache, 7 in this run"
    ]
