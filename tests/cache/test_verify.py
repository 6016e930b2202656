"""fsck: every kind of damage is found and named, what is whole is not, and repair gives nothing whole away."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache import verify_group
from cache.arrays import open_for_writing
from cache.create import create_cache
from cache.finalise import finalise
from cache.group import load_manifest
from cache.manifest import Manifest
from cache.store import file_digest
from cache.verify import repair, verify
from cache.verify_group import DATA, HAND, REDO, RERUN, TIDY
from tests.cache import small_caches
from tests.cache.small_caches import identity_of, make_cache, tree_of, write_views

SHARDS = {"a.tar": 70, "deep/b.tar": 10, "c.tar": 5}
CONSTANTS = {"classifier": np.ones((3, 5), np.float32), "classifier_bias": np.zeros(5, np.float32)}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def boxes_inside():
    """Boxes inside the picture, as real ones are."""
    with pytest.MonkeyPatch.context() as patch:
        drawn = small_caches.content

        def content(*args, **fields):
            columns = drawn(*args, **fields)
            return columns | {"box": columns["box"] / 2 + np.float32(1e-3)}

        patch.setattr(small_caches, "content", content)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two views of three shards, logits and maps, a quarantined clip, constants at the root."""
    path = tmp_path_factory.mktemp("whole") / "t.zarr"
    manifest = create_cache(path, Manifest(identity_of(SHARDS, features=True), 2), CONSTANTS)
    for shard in SHARDS:
        write_views(path, manifest, shard, range(2), invalid=(3,))
    finalise(path)
    return path


@pytest.fixture
def cache(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "t.zarr")
    return tmp_path / "t.zarr"


def found(path, **options):
    """(shard, what, remedy) of every problem."""
    return [(p.shard, p.what, p.remedy) for p in verify(path, load_manifest(path), **options)]


def edit(file: Path, change) -> None:
    """Change the attributes of a group."""
    node = json.loads(file.read_text())
    change(node["attributes"])
    file.write_text(json.dumps(node))


def flip(file: Path, byte: int = 9) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 4
    file.write_bytes(data)


def test_a_whole_cache_has_no_problems(whole):
    seen, before = [], tree_of(whole)
    assert found(whole, progress=seen.append) == [] and seen == list(SHARDS)
    assert tree_of(whole) == before


@pytest.mark.parametrize("file", ["logits/c.0.1.0", "features/c.1.0.0.0.0.0", "valid/c.0.0", "scale/c.0.1"])
def test_a_flipped_byte(cache, file):
    flip(cache / "a.tar" / file)
    assert found(cache) == [("a.tar", f"{file}: its sha256 is not the one written", REDO)]


def test_a_missing_a_cut_and_an_exchanged_file(cache):
    (cache / "a.tar/features/c.0.1.0.0.0.0").unlink()
    cut = cache / "deep/b.tar/logits/c.0.0.0"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:7])
    shutil.copy(cache / "c.tar/frames/c.0.0.0", cache / "c.tar/frames/c.0.1.0")
    assert found(cache) == [
        ("a.tar", "features/c.0.1.0.0.0.0: missing", REDO),
        ("deep/b.tar", f"logits/c.0.0.0: 7 bytes of {size}", REDO),
        ("c.tar", "frames/c.0.1.0: it is frames/c.0.0.0", REDO),
    ]


def test_files_that_no_one_listed(cache):
    for name in ("a.tar/logits/c.0.2.0", "a.tar/logits/.c.0.2.0.partial", "classifier/c.1.0", "notes.txt"):
        (cache / name).write_text("x")
    (cache / "lost.tar").mkdir()
    (cache / ".tmp").mkdir()
    assert found(cache) == [
        ("", "classifier/c.1.0: not listed (1 files)", TIDY),
        ("", "lost.tar: not part of this cache", HAND),
        ("", "notes.txt: not part of this cache", HAND),
        ("a.tar", "logits/.c.0.2.0.partial: not listed (2 files)", TIDY),
    ]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"float32"', '"float64"', "data_type"),
        ('"little"', '"big"', "codecs"),
        ("70", "71", "shape [71, 2, 4]"),
        ('"NaN"', "0.0", "fill_value"),
        ("{", "", "JSONDecodeError"),
    ],
)
def test_damaged_metadata_of_an_array(cache, old, new, what):
    file = cache / "a.tar/box/zarr.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    ((shard, said, remedy),) = found(cache)
    assert (shard, remedy) == ("a.tar", REDO) and said.startswith("box/zarr.json: damaged") and what in said
    file.unlink()
    assert found(cache) == [("a.tar", "box/zarr.json: missing", REDO)]


def swap_keys(group):
    group["keys"][0], group["keys"][1] = group["keys"][1], group["keys"][0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (swap_keys, "its keys are not the shard's"),
        (lambda group: group.update(views=7), "7 views"),
        (lambda group: group.update(views="2"), "views is '2'"),
        (lambda group: group["files"].pop("flip/c.0.0"), "it lists other files (flip/c.0.0)"),
        (lambda group: group.pop("files"), "is not a shard of a cache of format"),
        (lambda group: group["quarantine"].update(nobody="gone"), "reasons for clips that the shard doesn't have"),
        (lambda group: group.update(quarantine={}), "without a reason in the quarantine: 1 clips, 'a-0003' first"),
        (lambda group: group["quarantine"].update({"a-0001": "?"}), "in all views, and in the quarantine: 1 clips"),
        (lambda group: group.update(fingerprint="00"), "made by another run"),
        (lambda group: group["targets"].update(logits="00"), "its logits are stored with other settings"),
    ],
)
def test_damaged_attributes_of_a_group(cache, change, what):
    edit(cache / "a.tar/zarr.json", change)
    problems = [p for p in found(cache) if p[2] == REDO]
    assert [p[0] for p in problems] == ["a.tar"] and what in problems[0][1]


def test_json_that_is_none(cache):
    (cache / "a.tar/zarr.json").write_bytes(b"\x00" * 30)
    (cache / "c.tar/zarr.json").unlink()
    shutil.rmtree(cache / "deep/b.tar")
    (_, first, redo), other, lost = found(cache)
    assert "zarr.json is damaged" in first and str(cache) not in first and redo == REDO
    assert lost == ("c.tar", "its zarr.json is missing, other files are present", REDO)
    assert other == ("deep/b.tar", "its group is lost", RERUN)


def test_groups_in_each_others_place(cache):
    (cache / "a.tar").rename(cache / "x")
    (cache / "c.tar").rename(cache / "a.tar")
    (cache / "x").rename(cache / "c.tar")
    assert found(cache) == [
        ("a.tar", "it is the group of shard c.tar", REDO),
        ("c.tar", "it is the group of shard a.tar", REDO),
    ]


def test_a_manifest_of_another_run_costs_no_group(cache):
    """Were each group redone that the manifest doesn't fit, an exchanged manifest would cost the whole cache."""
    edit(cache / "zarr.json", lambda root: root["identity"]["teacher"].update(weights_sha256="00"))
    ((shard, what, remedy),) = found(cache)
    assert (shard, remedy) == ("", HAND) and "none of the 3 groups" in what
    before = tree_of(cache)
    repair(cache, load_manifest(cache), verify(cache, load_manifest(cache)))
    assert tree_of(cache) == before


def test_damaged_constants_and_quarantine_of_the_root(cache):
    flip(cache / "classifier/c.0.0")
    edit(cache / "zarr.json", lambda root: root["quarantine"].pop("c.tar"))
    assert found(cache) == [
        ("", "classifier/c.0.0, which is needed to read features: its sha256 is not the one written", RERUN),
        ("c.tar", "the manifest's quarantine isn't the shard's", RERUN),
    ]


def test_values_that_no_teacher_gives(tmp_path, monkeypatch):
    """Committed so, with whole files: a view out of the picture, before the first frame."""
    drawn = small_caches.content

    def content(identity, shard, view, invalid=()):
        columns = drawn(identity, shard, view, invalid)
        columns["box"][1] = 0.7, 0, 0.5, 1
        columns["frames"][2] = -1, 4
        return columns

    monkeypatch.setattr(small_caches, "content", content)
    manifest = make_cache(tmp_path / "t.zarr", {"a.tar": 4}, views=1, features=True)
    assert [p.what for p in verify(tmp_path / "t.zarr", manifest)] == [
        "view 0, a box outside the picture: 1 clips, 'a-0001' first",
        "view 0, frames before the first: 1 clips, 'a-0002' first",
    ]


@pytest.mark.parametrize(("array", "value"), [("scale", np.nan), ("features", np.inf)])
def test_rows_without_targets(cache, array, value):
    """Under a list of files that knows no better."""
    stored = open_for_writing(cache / "a.tar", array)
    values = stored[:, 1]
    values[[3, 65]] = value  # 3 is quarantined
    stored[:, 1] = values
    files = {p.relative_to(cache / "a.tar").as_posix(): file_digest(p) for p in (cache / "a.tar" / array).glob("c.*")}
    edit(cache / "a.tar/zarr.json", lambda group: group["files"].update(files))
    target = "logits" if array == "scale" else array
    assert found(cache) == [("a.tar", f"view 1, {target} missing or not finite: 1 clips, 'a-0065' first", REDO)]


def test_frames_are_held_against_the_videos(whole):
    lengths = np.full(70, 100)
    lengths[[0, 1, 3]] = 1  # 3 has no targets
    ((shard, what, remedy), *_) = found(whole, lengths=lambda shard: lengths if shard == "a.tar" else None)
    assert (shard, remedy) == ("a.tar", DATA) and "after the last of the data set's video: 2 clips, 'a-0000'" in what


def test_a_disk_that_refuses_is_left_to_a_person(cache, monkeypatch):
    def refuses(file):
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(verify_group, "file_digest", refuses)
    problems = [p for p in verify(cache, replace_constants(load_manifest(cache))) if p.shard]
    assert {p.remedy for p in problems} == {HAND} and "Input/output error" in problems[0].what


def replace_constants(manifest):
    return Manifest(**{**manifest.__dict__, "constants": {}})


def test_an_unfinished_cache_is_not_a_damaged_one(tmp_path):
    path = tmp_path / "t.zarr"
    manifest = create_cache(path, Manifest(identity_of(SHARDS, features=True), 3))
    assert verify(path, manifest) == []
    write_views(path, manifest, "a.tar", range(2))
    assert verify(path, manifest) == []


@pytest.mark.parametrize("views", [1, 2])
def test_fewer_views_than_are_finished(whole, cache, tmp_path, views):
    """A group out of an older copy: cache-teacher goes on with it."""
    old = make_old(tmp_path / "old.zarr", views)
    shutil.rmtree(cache / "c.tar")
    shutil.copytree(old / "c.tar", cache / "c.tar")
    wanted = [("c.tar", "1 views of logits, features: not all that is finished", RERUN)] if views == 1 else []
    assert [(s, w.replace("features, logits", "logits, features"), r) for s, w, r in found(cache)] == wanted


def make_old(path, views):
    manifest = create_cache(path, Manifest(identity_of(SHARDS, features=True), 2), CONSTANTS)
    write_views(path, manifest, "c.tar", range(views), invalid=(3,))
    return path


def test_repair_takes_what_is_damaged_and_nothing_else(whole, cache):
    flip(cache / "a.tar/logits/c.0.0.0")
    (cache / "c.tar/zarr.json").unlink()
    (cache / "deep/b.tar/box/c.5.0.0").write_text("x")
    manifest = load_manifest(cache)
    repair(cache, manifest, verify(cache, manifest))
    left = load_manifest(cache)
    assert (left.finalised, left.finalised_shards, left.finalised_targets, left.views) == (0, 0, (), 2)
    kept = {n: d for n, d in tree_of(whole).items() if n.split("/")[0] not in ("a.tar", "c.tar", "zarr.json")}
    assert {n: d for n, d in tree_of(cache).items() if n != "zarr.json"} == kept
    assert verify(cache, left) == []
    for shard in ("a.tar", "c.tar"):
        write_views(cache, left, shard, range(2), invalid=(3,))
    finalise(cache)
    assert tree_of(cache) == tree_of(whole)


def test_repair_of_stray_files_leaves_the_cache_finished(whole, cache):
    (cache / "a.tar/logits/c.0.2.0").write_text("x")
    repair(cache, load_manifest(cache), verify(cache, load_manifest(cache)))
    assert tree_of(cache) == tree_of(whole)


def test_a_killed_repair_is_not_taken_for_a_finished_cache(cache, monkeypatch):
    flip(cache / "a.tar/logits/c.0.0.0")
    (cache / "c.tar/zarr.json").unlink()
    monkeypatch.setattr(Path, "rename", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        repair(cache, load_manifest(cache), verify(cache, load_manifest(cache)))
    monkeypatch.undo()
    assert load_manifest(cache).finalised_shards == 0
    repair(cache, load_manifest(cache), verify(cache, load_manifest(cache)))
    assert sorted(p.name for p in cache.iterdir() if p.suffix == ".tar") == [] and (cache / "deep/b.tar").is_dir()


def test_needs_numpy_and_zarr_only():
    code = (
        "import sys, cache.verify, cache.contents; print([m for m in ('torch', 'av', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"
