"""The arrays at the root of a cache: the teacher's classifier, a basis, ranges."""

import numpy as np
import pytest
from small_caches import CLASSES, identity_of, tree_of, write_views
from small_caches import CONSTANTS as ROOT

import cache.create as create
from cache.create import create_cache
from cache.errors import ReskdError
from cache.finalise import finalise
from cache.group import load_manifest
from cache.identity import CONSTANTS, check_shard_names
from cache.manifest import Manifest
from cache.reader import CacheReader

SHARDS = {"000000.tar": 3}
CLASSIFIER = tuple(ROOT.values())


def wanted(views: int = 1) -> Manifest:
    return Manifest(identity_of(SHARDS, features=True), views)


@pytest.fixture
def made(tmp_path):
    create_cache(tmp_path / "t.zarr", wanted(), ROOT)
    return tmp_path / "t.zarr"


def test_they_come_back_as_they_were_written(made):
    weight, bias = CacheReader(made, ()).constants().values()
    assert (weight == CLASSIFIER[0]).all() and weight.dtype == np.float32
    assert (bias == 0).all() and bias.shape == (CLASSES,)  # a chunk of nothing but zeros is a file, too
    assert sorted(p.name for p in made.iterdir()) == ["classifier", "classifier_bias", "zarr.json"]


def test_they_stay_when_views_are_added_and_finished(made):
    before = {name: digest for name, digest in tree_of(made).items() if name.startswith("classifier")}
    manifest = create_cache(made, wanted(2), ROOT)
    write_views(made, manifest, "000000.tar", range(2))
    assert finalise(made).constants == manifest.constants
    assert before.items() <= tree_of(made).items()
    assert (CacheReader(made).constants()["classifier"] == CLASSIFIER[0]).all()


@pytest.mark.parametrize("name", ["classifier/c.0.0", "classifier_bias/c.0", "classifier/zarr.json"])
def test_a_missing_or_exchanged_file_is_an_error_until_a_rerun_restores_it(made, name):
    whole = tree_of(made)
    (made / name).unlink()
    with pytest.raises(ReskdError, match=rf"{name}.*is missing.*cache-teacher again"):
        CacheReader(made, ()).constants()
    create_cache(made, wanted(), ROOT)
    assert tree_of(made) == whole
    other = made.parent / "other.zarr"
    create_cache(other, wanted(), {name: values + 1 for name, values in ROOT.items()})
    content = (other / name).read_bytes() if "json" not in name else (made / name).read_bytes() + b" "
    (made / name).write_bytes(content)
    with pytest.raises(ReskdError, match=rf"{name}.*not the one that was written"):
        CacheReader(made, ()).constants()
    create_cache(made, wanted(), ROOT)
    assert tree_of(made) == whole


def test_they_are_added_to_a_cache_that_gets_features(tmp_path):
    path, logits = tmp_path / "t.zarr", Manifest(identity_of(SHARDS), 1)
    create_cache(path, logits)
    assert CacheReader(path, ()).constants() == {} and load_manifest(path).constants == {}
    create_cache(path, wanted(), ROOT)
    assert (CacheReader(path, ()).constants()["classifier"] == CLASSIFIER[0]).all()


def test_killed_before_any_file_a_rerun_ends_in_the_same_bytes(made, tmp_path, monkeypatch):
    real, whole = create.write_atomically, tree_of(made)
    for files in range(5):
        path, left = tmp_path / f"{files}.zarr", [files]

        def dying(file, data, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(file, data)

        monkeypatch.setattr(create, "write_atomically", dying)
        if files < 4:
            with pytest.raises(KeyboardInterrupt):
                create_cache(path, wanted(), ROOT)
            assert not (path / "zarr.json").exists()
        monkeypatch.setattr(create, "write_atomically", real)
        create_cache(path, wanted(), ROOT)
        assert tree_of(path) == whole


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "t.zarr" / "classifier").mkdir(parents=True)
    (tmp_path / "t.zarr" / "classifier" / "notes.txt").write_text("mine")
    with pytest.raises(ReskdError, match="something else than a cache"):
        create_cache(tmp_path / "t.zarr", wanted(), ROOT)


@pytest.mark.parametrize("name", [*CONSTANTS, "basis/000000.tar"])
def test_a_shard_may_not_lie_in_their_place(name):
    with pytest.raises(ReskdError, match=f"{name}.*classifier or classifier_bias or basis.*rename"):
        check_shard_names([name])
