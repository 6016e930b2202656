"""The pack's format and its reader: the same pictures as from the videos, and nothing read that isn't as it was packed."""

import io
import json
import multiprocessing
import pickle
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cache.errors import ReskdError
from cache.view import ViewPolicy, sample_view
from stages.packs.config import PackConfig
from stages.packs.pack import pack
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.stream.clips import ClipDataset
from stages.stream.frame_height import height_for, largest_size_served, packed_size, smallest_side
from stages.stream.pack_reader import open_pack
from stages.video import jpeg
from tests.media import encode_video, moving_square
from tests.runs import tree

SHAPES = {"landscape": (120, 160), "portrait": (180, 136), "wide": (90, 250), "small": (48, 64)}  # height, width
SIZE = 56


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Two nested shards, made elsewhere, of four shapes and an unreadable clip; every frame packed for 56 px."""
    root = tmp_path_factory.mktemp("shapes")
    for s, name in enumerate(("a/x.tar", "b/x.tar")):
        (root / "tars" / name).parent.mkdir(parents=True)
        with tarfile.open(root / "tars" / name, "w") as tar:
            clips = {k: encode_video(moving_square(12, *hw, seed=s)) for k, hw in SHAPES.items()}
            for key, video in (clips | ({"broken": b"no video"} if s else {})).items():
                info = tarfile.TarInfo(f"{key}.mp4")
                info.size = len(video)
                tar.addfile(info, io.BytesIO(video))
    prepare(root / "tars", root / "data", workers=0)
    config = PackConfig(data=root / "data", output=root / "pack", frames="all", size=SIZE, loader={"workers": 0})
    pack(config)
    return root


def pictures_of(data, shard: str, r: int, view, size: int, decode=None) -> np.ndarray:
    """uint8 [T,3,S,S] that a student sees."""
    s = [entry.name for entry in data.shards].index(shard)
    policy = ViewPolicy(num_frames=4, **view[0])
    return ClipDataset(data, size=size, num_classes=1, policy=policy, decode=decode)[s, r, view[1]].clips[0].numpy()


CROPS = [{"crop": "multi_scale_crop"}, {"crop": "center", "jitter": False, "flip": 0.0}, {"crop": "full"},
         {"crop": "random_resized_crop", "area": (0.5, 1.0)}]  # fmt: skip


@settings(max_examples=40)
@given(row=st.integers(0, 3), crop=st.sampled_from(CROPS), index=st.integers(0, 99), size=st.integers(16, SIZE))
def test_a_students_picture_from_the_pack_is_that_of_the_video(packed, row, crop, index, size):
    """At the auto height for 56 px (85) and quality 90, 35 dB; where nothing was shrunk, JPEG's loss alone: 38 dB."""
    data, made = open_dataset(packed / "data"), open_pack(packed / "pack")
    assert made.manifest.identity.height == 85
    ours, theirs = (pictures_of(data, "a/x.tar", row, (crop, index), size, d) for d in (made.decode, None))
    shrunk = min(SHAPES[data.rows("a/x.tar")[row].key]) > 85
    assert ours.shape == theirs.shape and jpeg.psnr(ours, theirs) > (35 if shrunk else 38)


@given(
    crop=st.sampled_from(CROPS),
    index=st.integers(0, 10_000),
    size=st.integers(8, 512),
    sides=st.tuples(st.integers(8, 4096), st.integers(8, 4096)),
)
def test_no_crop_is_enlarged_at_the_auto_height(crop, index, size, sides):
    policy, (width, height) = ViewPolicy(num_frames=1, **crop), sides
    short = height_for(size, smallest_side(policy))
    w, h = packed_size(width, height, short)
    assert (w, h) == (width, height) if min(width, height) <= short else min(w, h) == short
    assert abs(w / h - width / height) <= 1.01 * max(w, h) / min(w, h) ** 2
    view = sample_view(policy, shard="s", key="k", index=index, num_frames=1, aspect=width / height)
    if min(width, height) >= short:
        assert min(view.box[2] * h, view.box[3] * w) > size - 0.01
    assert (
        largest_size_served(short, smallest_side(policy))
        >= size
        > largest_size_served(short - 1, smallest_side(policy))
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.integers(1, 95))
@settings(max_examples=30)
def test_a_jpeg_decodes_as_pillow_decodes_it_or_is_refused(seed, height, width, quality):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    encoded = jpeg.encode(picture, quality)
    assert np.array_equal(jpeg.decode(encoded), np.asarray(Image.open(io.BytesIO(encoded))))
    for damaged in (b"", encoded[: len(encoded) // 2], b"x" + encoded[1:]):
        with pytest.raises(OSError):
            jpeg.decode(damaged)


def test_a_stream_is_motion_jpeg_and_a_shard_is_a_webdataset(packed):
    data, made = open_dataset(packed / "data"), open_pack(packed / "pack")
    with open(packed / "pack" / "b/x.tar", "rb") as file:
        samples = list(webdataset.tariterators.group_by_keys(
            webdataset.tariterators.tar_file_expander([{"url": "x", "stream": file}])))  # fmt: skip
    assert [s["__key__"] for s in samples] == [row.key for row in data.rows("b/x.tar")]
    for sample, row in zip(samples, data.rows("b/x.tar"), strict=True):
        about = json.loads(sample["json"])
        if row.error:
            assert about == {"error": row.error} and sample["mjpeg"] == b""
            continue
        width, height = packed_size(row.width, row.height, 85)
        assert about["frames"] == list(range(12)) and sum(about["sizes"]) == len(sample["mjpeg"])
        assert (about["width"], about["height"]) == (width, height)
        with av.open(io.BytesIO(sample["mjpeg"]), format="mjpeg") as stream:
            shapes = [(frame.width, frame.height) for frame in stream.decode(video=0)]
        assert shapes == [(width, height)] * 12
    assert made.manifest.quarantine == {"b/x.tar": {4: data.rows("b/x.tar")[4].error}}


def test_frames_count_from_the_clips_start_in_any_order(packed):
    made = open_pack(packed / "pack")
    data = open_dataset(packed / "data")
    straight, _ = made.decode(data, "a/x.tar", 0, np.arange(12))
    turned, served = made.decode(data, "a/x.tar", 0, np.array([7, 3, 3, 11]))
    assert (turned == straight[[7, 3, 3, 11]]).all() and served == data.rows("a/x.tar")[0].decoder
    rows = tuple(replace(row, start=100) for row in data.rows("a/x.tar"))
    later = open_dataset(packed / "data")
    later._rows.get("a/x.tar", lambda: (rows, []))  # a segment of a longer video
    assert (made.decode(later, "a/x.tar", 0, np.array([107]))[0] == straight[7]).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_workers_read_it(packed, method):
    data, made = open_dataset(packed / "data"), open_pack(packed / "pack")
    asked = [(data, "b/x.tar", r, np.array([2, 9])) for r in range(4)]
    here = [made.decode(*a)[0] for a in asked]  # its tars are open when the workers are forked
    with multiprocessing.get_context(method).Pool(1) as pool:
        there = pool.starmap(made.decode, asked)
    assert all((a == b[0]).all() for a, b in zip(here, there, strict=True))


def test_threads_share_it_and_it_is_small_to_pickle(packed):
    data, made = open_dataset(packed / "data"), open_pack(packed / "pack")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: made.decode(data, "a/x.tar", i % 4, np.arange(12))[0].sum(), range(64)))
    assert found == found[:4] * 16 and len(pickle.dumps(made)) < 4000


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def copy(packed, tmp_path):
    for name in tree(packed / "pack"):
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_bytes((packed / "pack" / name).read_bytes())
    return tmp_path / "pack"


def patched(file: Path, offset: int, content: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(offset)
        opened.write(content)


def read_all(packed, copy) -> None:
    open_pack(copy).decode(open_dataset(packed / "data"), "a/x.tar", 1, np.arange(12))


def test_damage_is_named_and_a_rerun_mends_it(packed, copy):
    tar, columns = copy / "a/x.tar", json.loads((copy / "a/x.tar.rows.json").read_bytes())
    start, offsets = columns["offset"][1], columns["offsets"][1]
    whole = tar.read_bytes()
    for offset, content, said in [
        (start + offsets[3] + 300, b"\0\1\2", r"frame 3 of .*\.mjpeg: \d+ bytes of other content"),
        (start + offsets[11], b"no JPEG", "frame 11 of"),
        (start - 512, b"other", r"row 1: another member lies where \w+\.mjpeg was"),
    ]:
        patched(tar, offset, content)
        with pytest.raises(ReskdError, match=rf"a/x\.tar: {said}.*delete it and run `pack` again"):
            read_all(packed, copy)
        tar.write_bytes(whole)
    tar.write_bytes(whole[:-512])
    with pytest.raises(ReskdError, match=r"a/x\.tar: \d+ bytes, pack\.json has \d+"):
        open_pack(copy).check_files()
    with pytest.raises(ReskdError, match="cut, damaged"):
        read_all(packed, copy)
    tar.unlink()
    for read in (open_pack(copy).check_files, lambda: read_all(packed, copy)):
        with pytest.raises(ReskdError, match=r"a/x\.tar: missing .*run `pack` again"):
            read()
    before, other = tree(packed / "pack"), copy / "b/x.tar"
    other.write_bytes(other.read_bytes()[:-512])
    pack(PackConfig(data=packed / "data", output=copy, frames="all", size=SIZE, loader={"workers": 0}))
    assert tree(copy) == before


def test_other_rows_and_manifests_are_refused(packed, copy):
    rows = copy / "a/x.tar.rows.json"
    rows.write_bytes(rows.read_bytes().replace(b'"landscape"', b'"elsewhere"'))
    with pytest.raises(ReskdError, match=r"a/x\.tar: x\.tar\.rows\.json beside it is not the one of pack\.json"):
        read_all(packed, copy)
    rows.unlink()
    with pytest.raises(ReskdError, match=r"a/x\.tar\.rows\.json: missing"):
        open_pack(copy).check_files()
    manifest = copy / "pack.json"
    whole = manifest.read_text()
    older = re.sub(r',"sha256":"\w+"}\n$', "}\n", whole)
    for text, said in [
        (whole.replace('"quality":90', '"quality":91'), r"pack\.json: damaged .*its sha256 is not that of its values"),
        (whole.replace('"format":2', '"format":9'), "format version 9, this program reads 2"),
        (whole[:100], r"pack\.json: damaged"),
        (older.replace('"finished":true', '"finished":false'), "the pack is not finished: run `pack` again"),
    ]:
        manifest.write_text(text)
        with pytest.raises(ReskdError, match=said):
            open_pack(copy)
    manifest.unlink()
    with pytest.raises(ReskdError, match=r"pack\.json: no pack in this folder"):
        open_pack(copy)


def test_a_frame_that_is_not_there_is_no_unreadable_clip(packed):
    data, made = open_dataset(packed / "data"), open_pack(packed / "pack")
    with pytest.raises(
        ReskdError, match=r"shard a/x\.tar, clip '\w+': frame 12 is not in the pack \(it has 12 frames"
    ) as e:
        made.decode(data, "a/x.tar", 2, np.array([3, 12]))
    assert type(e.value) is ReskdError and "frames: all" in str(e.value)  # not a DecodeError, which masks a row
    with pytest.raises(ReskdError, match=r"'broken': frame 0 .*the clip is in its quarantine"):
        made.decode(data, "b/x.tar", 4, np.array([0]))
    with pytest.raises(ReskdError, match="frame -1 is not"):
        made.decode(data, "a/x.tar", 0, np.array([-1]))
