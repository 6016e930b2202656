"""What a cache says of itself."""

import dataclasses
import json

import pytest
from small_caches import identity_of

from cache.differences import differing_identities
from cache.errors import ReskdError
from cache.identity import Identity, ShardEntry, keys_digest
from cache.manifest import FORMAT, Manifest
from cache.view import ViewPolicy

SHARDS = {"000000.tar": 3, "000001.tar": 4}


def test_round_trip_through_json():
    policy = ViewPolicy(seed=3, scales=(1.0, 0.66), ratio=(0.1 + 0.2, 3.0))
    manifest = Manifest(
        identity_of(SHARDS, features=True, policy=policy),
        views=8,
        finalised=4,
        finalised_shards=1,
        finalised_targets=("logits",),
        quarantine={"000001.tar": {2: "no video stream", 0: "empty"}},
        packages={"torch": "2.15"},
        constants={"basis/c.0.0": [12, "ab" * 32]},
        notes={"features": {"rounding": 0.25}},
    )
    text = json.dumps(manifest.to_json())
    assert Manifest.from_json(json.loads(text)) == manifest
    assert Identity.from_json(json.loads(text)["identity"]) == manifest.identity
    assert differing_identities(Identity.from_json(json.loads(text)["identity"]), manifest.identity) == []


def test_tuples_and_lists_are_the_same_identity():
    grid = {"features": {"codec": "float16", "grid": (1, 2, 2), "width": 3}}
    other = {"features": {"codec": "float16", "grid": [1, 2, 2], "width": 3}}
    assert identity_of(SHARDS, targets=grid) == identity_of(SHARDS, targets=other)


def test_another_format_version_is_refused_with_both_and_a_remedy():
    data = Manifest(identity_of(SHARDS), views=1).to_json() | {"format": FORMAT + 1}
    with pytest.raises(ReskdError, match=rf"version {FORMAT + 1}.* reads {FORMAT}.*cache-teacher"):
        Manifest.from_json(data)


@pytest.mark.parametrize("damage", ["views", "identity", "quarantine", "constants", "finalised_targets"])
def test_a_damaged_manifest_is_refused(damage):
    data = Manifest(identity_of(SHARDS), views=1).to_json()
    del data[damage]
    with pytest.raises(ReskdError, match=f"damaged.*{damage}"):
        Manifest.from_json(data)


@pytest.mark.parametrize("place", ["", "identity.", "identity.policy.", "identity.shards."])
def test_keys_of_a_newer_version_are_refused_with_what_to_do(place):
    data = Manifest(identity_of(SHARDS), views=1).to_json()
    identity = data["identity"]
    parts = {"": data, "identity.": identity, "identity.policy.": identity["policy"]}
    parts.get(place, identity["shards"][1])["surprise"] = 1
    with pytest.raises(
        ReskdError, match=rf"newer version.*\({place}surprise\).*[Uu]se the newer version, or make.*anew"
    ):
        Manifest.from_json(data)


def changed(**fields) -> list[str]:
    return differing_identities(identity_of(SHARDS), identity_of(SHARDS, **fields))


def test_differences_name_the_field_and_both_sides():
    assert changed() == []
    assert changed(decoder="pyav 18.1.0") == [
        'decoder: the cache has "decord 0.6.0", this run wants "pyav 18.1.0"',
    ]
    teacher = identity_of(SHARDS).teacher
    assert changed(teacher=teacher | {"model": {"name": "tsm", "depth": 50}}) == [
        "teacher.model.depth: the cache has 18, this run wants 50"
    ]
    assert changed(teacher=teacher | {"dtype": "float32"}) == [
        'teacher.dtype: the cache has nothing, this run wants "float32"'
    ]
    lines = changed(policy=ViewPolicy(num_frames=8, seed=1), features=True)
    assert "policy.num_frames: the cache has 2, this run wants 8" in lines
    assert "policy.seed: the cache has 0, this run wants 1" in lines
    assert "targets.features.grid: the cache has nothing, this run wants [1, 2, 2]" in lines
    assert changed(classes=tuple(f"class {i}" for i in (0, 2, 1, 3, 4))) == [
        "classes: class 1 is 'class 1' in the cache and 'class 2' in this run"
    ]
    assert changed(classes=("a",)) == ["classes: 5 in the cache and 1 in this run"]


def test_differences_name_the_first_differing_shards():
    many = {f"{i:06d}.tar": 3 for i in range(10)}
    lines = differing_identities(identity_of(many), identity_of({"000000.tar": 3, "x.tar": 3}))
    assert lines == [
        "shards: 9 only in the cache (of 10 and 2): 000001.tar, 000002.tar, 000003.tar …",
        "shards: 1 only in this run (of 10 and 2): x.tar",
    ]
    entries = identity_of(SHARDS).shards
    other = (entries[0], dataclasses.replace(entries[1], bytes=7))
    assert changed(shards=other) == [
        "shards: 1 of 2 changed: 000001.tar: bytes 1004 in the cache, 7 in this run",
    ]
    assert changed(shards=entries[::-1]) == ["shards: the same 2 shards in another order"]


def test_a_shards_fingerprint_depends_on_everything_but_the_other_shards_and_the_targets():
    identity = identity_of(SHARDS)
    mark = identity.fingerprint("000000.tar")
    assert identity_of(SHARDS | {"000002.tar": 1}).fingerprint("000000.tar") == mark
    assert identity_of(SHARDS, features=True, codec="float16").fingerprint("000000.tar") == mark
    others = [
        identity.fingerprint("000001.tar"),
        identity_of(SHARDS, decoder="pyav 18.1.0").fingerprint("000000.tar"),
        identity_of(SHARDS, policy=ViewPolicy(seed=9)).fingerprint("000000.tar"),
        identity_of(SHARDS, classes=("a",)).fingerprint("000000.tar"),
        identity_of({"000000.tar": 2}).fingerprint("000000.tar"),
    ]
    assert mark not in others and len(set(others)) == len(others)


def test_a_targets_fingerprint_depends_on_its_own_settings_alone():
    identity, other = identity_of(SHARDS, features=True), identity_of(SHARDS, features=True, codec="float16")
    assert identity.target_fingerprint("logits") == identity_of(SHARDS).target_fingerprint("logits")
    assert identity.target_fingerprint("logits") != other.target_fingerprint("logits")
    assert identity.target_fingerprint("features") == other.target_fingerprint("features")
    changed = identity.targets["features"] | {"constants_sha256": "12" * 32}
    another = dataclasses.replace(identity, targets=identity.targets | {"features": changed})
    assert identity.target_fingerprint("features") != another.target_fingerprint("features")


def test_unknown_shards_are_refused():
    with pytest.raises(ReskdError, match=r"'x\.tar' is not in the cache's shard list \(2 shards\)"):
        identity_of(SHARDS).shard("x.tar")


def test_key_digests_tell_lists_apart():
    assert keys_digest(["a", "b"]) == keys_digest(("a", "b"))
    assert len({keys_digest(k) for k in (["a", "b"], ["b", "a"], ["ab"], ["a\nb"], ["a", "b", ""], [])}) == 6


@pytest.mark.parametrize(
    "name", ["", "/data/0.tar", "../0.tar", "a/../0.tar", "a//b.tar", "./a.tar", ".tmp/0.tar", "a\\b.tar", "zarr.json"]
)
def test_shard_names_that_are_no_folders_of_the_cache_are_refused(name):
    with pytest.raises(ReskdError, match="can't be used"):
        identity_of({}, shards=(ShardEntry(name, 1, 1, "", ""),))


def test_shards_twice_or_inside_one_another_are_refused():
    entry = ShardEntry("a.tar", 1, 1, "", "")
    with pytest.raises(ReskdError, match=r"'a\.tar' comes twice"):
        identity_of({}, shards=(entry, entry))
    with pytest.raises(ReskdError, match=r"'a\.tar' and 'a\.tar/b\.tar' can't lie inside"):
        identity_of({}, shards=(entry, dataclasses.replace(entry, name="a.tar/b.tar")))
