"""`inspect-cache`: figures that are those on disk, and a clip's views as the teacher saw them."""

import io
import json
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cache.create import create_cache
from cache.errors import ReskdError
from cache.group import load_group, load_manifest
from cache.identity import CONSTANTS
from cache.manifest import Manifest
from cache.reader import CacheReader
from pipeline import cli
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.teacher import clip_sheet
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.inspect_cache import inspect_cache
from tests.cache.small_caches import identity_of, write_views
from tests.runs import cache_config, command, tree


@pytest.fixture(scope="module")
def two_shards(data, teacher, tmp_path_factory):
    """Shards a and b share the key `same`; one clip of b is unreadable. One view, logits and int8 maps."""
    root = tmp_path_factory.mktemp("two")
    videos = [p.read_bytes() for p in sorted((data.videos / "val").rglob("*.mp4"))[:6]]
    clips = {"a": {"same": 0, "only-a": 1, "x": 2}, "b": {"same": 3, "broken": None, "y": 4}}
    (root / "tars").mkdir()
    for shard, members in clips.items():
        with tarfile.open(root / "tars" / f"{shard}.tar", "w") as tar:
            for key, number in members.items():
                for name, content in ((f"{key}.mp4", b"" if number is None else videos[number]), (f"{key}.cls", b"0")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (root / "classes.txt").write_text("\n".join(open_dataset(data.train).classes) + "\n")
    prepare(root / "tars", root / "data", classes=root / "classes.txt", workers=1)
    few = type(data)(train=root / "data")
    config = cache_config(root / "t.zarr", few, teacher, "targets.features={codec: int8, dims: 4}", "views=1")
    cache_teacher(config)
    return config


def test_figures_are_those_on_disk(data, cached, tmp_path):
    before = tree(cached)
    said = command("inspect-cache", cached, "--data", data.train, "--json", tmp_path / "all.json")
    result = json.loads((tmp_path / "all.json").read_text())
    assert tree(cached) == before
    sizes, files = result["bytes"], [p for p in cached.rglob("*") if p.is_file()]
    assert sizes["total"] == sum(p.stat().st_size for p in files)
    assert sizes["total"] == sum(sizes["by_array"].values()) + sum(sizes[k] for k in ("constants", "metadata", "other"))
    for name in ("features", "logits", "box"):
        chunks = sum(p.stat().st_size for p in cached.glob(f"*.tar/{name}/c.*"))
        assert sizes["by_array"][name] == chunks and sizes["of_clip_view"][name] == chunks / 400
    assert sizes["constants"] == sum(
        p.stat().st_size for p in files if p.parent.parent == cached and p.parent.name in CONSTANTS
    )
    assert (result["views"], result["finished_views"], result["shards"], result["clips"]) == (2, 2, 3, 200)
    assert result["classes"] == 40 and result["clip_views"] == 400 and result["quarantine"]["clips"] == 0
    assert result["identity"]["targets"]["features"]["codec"] == "float16"
    assert 0 <= result["top1"] <= 100
    for part in ("tsm", "32 px", "scales", "codec uint8", "features", "top-1 on its cached views"):
        assert part in said, said


def test_errors_of_the_encoding_and_quarantine(two_shards):
    said = command("inspect-cache", two_shards.output)
    kept = load_manifest(two_shards.output).notes["features"]["channels"]
    assert f"keeps {100 * kept:.2f} % of the energy" in said and "quarantine: 1 clips" in said
    assert "b.tar/broken: " in said
    assert inspect_cache(two_shards.output)["top1"] is None


def test_cache_teacher_says_what_the_encoding_costs(two_shards, capfd):
    cache_teacher(two_shards)
    assert "the basis keeps" in " ".join(capfd.readouterr().err.split())


def test_a_clips_views_and_classes(data, cached, tmp_path, monkeypatch):
    key = load_group(cached, "000001.tar")["keys"][70]
    drawn = []
    monkeypatch.setattr(clip_sheet, "render", lambda *a, real=clip_sheet.render: drawn.append(a[1:]) or real(*a))
    said = command("inspect-cache", cached, "--clip", key, "--data", data.train, "--png", tmp_path / "clip.png")
    clip = inspect_cache(cached, clip=key)["clip"]
    assert (clip["shard"], clip["row"], clip["key"], clip["quarantine"]) == ("000001.tar", 70, key, None)
    for number, view in enumerate(clip["views"]):
        block = CacheReader(cached).block("000001.tar", number, 1)
        logits = block.logits[6].astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum()
        assert view["frames"] == block.frames[6].tolist() and view["box"] == block.box[6].tolist()
        assert [share for _, share in view["top"]] == pytest.approx(100 * np.sort(shares)[::-1][:5])
        assert view["top"][0][0] == load_manifest(cached).identity.classes[int(logits.argmax())]
        shown, size = drawn[number]
        assert size == 32 and (shown.frames == block.frames[6]).all() and (shown.box == block.box[6]).all()
        assert f"view {number}: frames {view['frames']}" in said
    with Image.open(tmp_path / "clip.png") as picture:
        assert picture.width > 400 and np.asarray(picture.convert("L")).std() > 20


def test_a_key_in_two_shards_and_one_that_is_not_there(two_shards):
    path = two_shards.output
    with pytest.raises(
        ReskdError, match=r"'same' is in 2 shards: name it as SHARD/KEY, such as a\.tar/same, b\.tar/same"
    ):
        inspect_cache(path, clip="same")
    assert inspect_cache(path, clip="b.tar/same")["clip"]["shard"] == "b.tar"
    with pytest.raises(ReskdError, match="no clip 'only_a' in this cache; similar names are .*only-a"):
        inspect_cache(path, clip="only_a")
    with pytest.raises(ReskdError, match="6 clips, such as"):
        inspect_cache(path, clip="§§§§§§§§§")


def test_a_clip_in_quarantine_is_not_drawn(two_shards, tmp_path):
    clip = inspect_cache(two_shards.output, clip="broken")["clip"]
    assert clip["views"] == [None] and clip["quarantine"]
    with pytest.raises(ReskdError, match="in quarantine .* nothing to draw"):
        inspect_cache(two_shards.output, data=two_shards.data, clip="broken", png=tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--png", "x.png"], ["--png", "x.png", "--clip", "a"]])
def test_a_picture_needs_a_clip_and_its_video(cached, options):
    done = CliRunner().invoke(cli, ["inspect-cache", str(cached), *options])
    assert done.exit_code == 1 and "--png draws the views of one clip: give --clip KEY, and --data" in done.output


def test_refuses_another_data_set_and_what_is_no_cache(data, cached, tmp_path):
    with pytest.raises(ReskdError, match="000000.tar has 40 clips in the data set, 80 in the cache"):
        inspect_cache(cached, data=data.val)
    with pytest.raises(ReskdError, match="is not a cache"):
        inspect_cache(tmp_path)


def test_an_unfinished_cache(tmp_path):
    path = tmp_path / "t.zarr"
    identity = identity_of({"a.tar": 70, "b.tar": 5}, features=True)
    manifest = create_cache(path, Manifest(identity, 3))
    write_views(path, manifest, "a.tar", range(2))
    result = inspect_cache(path)
    assert (result["views"], result["finished_views"], result["finished_shards"]) == (3, 0, 0)
    assert result["clip_views"] == 140 and result["bytes"]["of_clip_view"]["logits"] > 5
    (path / "a.tar" / "zarr.json").write_text("{")
    assert inspect_cache(path)["clip_views"] == 0


def test_help_teaches():
    said = CliRunner().invoke(cli, ["inspect-cache", "--help"]).output
    assert "--clip KEY --png clip.png" in said and "quarantine" in said
