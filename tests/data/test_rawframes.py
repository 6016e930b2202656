"""Folders of frames become clips that show the same pictures: every pixel, of any size, nearly as they were."""

import hashlib
import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cache.errors import ReskdError
from stages.prepare import make_shards
from stages.prepare.encode_frames import encode_pictures
from stages.prepare.prepare import prepare
from stages.shards.dataset import Dataset
from stages.shards.stream_shard import stream_shard
from stages.video.decode import DecodeError, decode_frames
from tests.data.test_publishers import kinds, lines, rows, write
from tests.media import numbered_frames, read_numbers
from tests.test_prepare import finished_before, tree

make = partial(prepare, "rawframes", workers=0)


@cache
def pan(n: int = 6, height: int = 120, width: int = 160) -> np.ndarray:
    """uint8 [n, height, width, 3]: a photograph, over which the camera moves."""
    photo = load_sample_image("flower.jpg")[100:]
    return np.stack([photo[3 * i : 3 * i + height, 5 * i + 100 : 5 * i + 100 + width] for i in range(n)])


def save(folder: Path, frames: np.ndarray, name: str = "img_{:05}.png", first: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / name.format(i))
    return folder


def decoded(data: Dataset, key: str) -> np.ndarray:
    for entry in data.shards:
        for _, row, video in stream_shard(data, entry.name):
            if row.key == key:
                return decode_frames(video, np.arange(row.frames), row.decoder)[0]
    raise KeyError(key)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of the worst frame, dB."""
    return min(10 * np.log10(255**2 / np.mean((x - y) ** 2.0)) for x, y in zip(a.astype(float), b, strict=True))


@pytest.mark.parametrize("size", [(120, 160), (121, 161), (67, 90), (90, 67)], ids=str)
def test_clips_show_the_pictures_at_more_than_45_db_odd_sizes_too(size):
    pictures = pan(6, *size)
    video = encode_pictures(iter(pictures), 25)
    assert video == encode_pictures(iter(pictures), 25)
    for decoder in ("decord", "pyav"):
        frames, _ = decode_frames(video, np.arange(6), decoder)
        assert frames.shape == pictures.shape and psnr(frames, pictures) > 45
    back, _ = decode_frames(video, [5, 0, 3], "decord")
    assert psnr(back, pictures[[5, 0, 3]]) > 45


def test_saturated_colours_and_noise_keep_their_place():
    colours = np.zeros((2, 32, 48, 3), np.uint8)
    for i, rgb in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255), (0, 0, 0)]):
        colours[:, :, 8 * i : 8 * i + 8] = rgb
    frames, _ = decode_frames(encode_pictures(iter(colours), 4), [0, 1], "decord")
    assert np.abs(frames.astype(int) - colours).max() <= 6  # sharp vertical edges and all: no chroma is shared
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    frames, _ = decode_frames(encode_pictures(iter(noise), 4), [0, 1], "decord")
    assert psnr(frames, noise) > 38


def test_a_list_of_frame_folders_becomes_a_data_set(tmp_path):
    folder = tmp_path / "frames"
    save(folder / "v_a", numbered_frames(8, 33, 64)), save(folder / "my class/v b", pan(5), "image_{:05}.png")
    save(folder / "v_c", pan(3)), save(folder / "from zero", numbered_frames(6, 32, 64), first=0)
    (folder / "v_a/flow_x_00001.png").write_bytes(b"of no interest")
    file = write(tmp_path / "actnet_png_img_train_split.txt", "v_a,8,3\nmy class/v b,5,1,0\nfrom zero 6 2\ngone 4 1\n")
    data = make(tmp_path / "out", annotations=file, videos=folder, fps=4)
    assert {key: (row.frames, row.labels) for key, row in rows(data).items()} == {
        "v_a": (8, (3,)), "my_class_v_b": (5, (1, 0)), "from_zero": (6, (2,))}  # fmt: skip
    assert kinds(tmp_path / "out") == {"gone": "absent", "v_c": "unlisted"} and not lines(tmp_path / "out", "report")
    assert read_numbers(decoded(data, "v_a")) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert read_numbers(decoded(data, "from_zero")) == [0, 1, 2, 3, 4, 5]
    assert psnr(decoded(data, "my_class_v_b"), pan(5)) > 45
    row = rows(data)["v_a"]
    assert (row.height, row.width, row.start) == (33, 64, 0)
    assert not (tmp_path / "out/.prepare").exists()


def test_a_folder_of_frames_elsewhere_is_taken_by_its_name_and_told(tmp_path):
    save(tmp_path / "frames/val/a", pan(3))
    save(tmp_path / "frames/train/b", pan(4))
    file = write(tmp_path / "list.txt", "train/a 3 0\ntrain/b 4 0\n")
    make(tmp_path / "out", annotations=file, videos=tmp_path / "frames")
    (told,) = lines(tmp_path / "out", "report")
    assert (told["path"], told["kind"]) == ("val/a", "elsewhere") and "taken for train/a," in told["reason"]


def test_clips_with_an_offset_are_parts_of_a_folder(tmp_path):
    save(tmp_path / "frames/long", numbered_frames(16, 32, 64), "img_{:05}.jpg")
    text = write(tmp_path / "list.txt", "long 0 4 1\nlong 4 6 0\nlong 12 5 0\nlong 4 6 0\n")
    form = [{"frame_dir": "long", "offset": o, "total_frames": n, "label": [c]} for o, n, c in ((0, 4, 1), (4, 6, 0))]
    for i, file in enumerate((text, write(tmp_path / "list.json", form))):
        data = make(tmp_path / f"out{i}", annotations=file, videos=tmp_path / "frames", with_offset=True)
        assert read_numbers(decoded(data, "long_0_4")) == [0, 1, 2, 3]
        assert read_numbers(decoded(data, "long_4_6")) == [4, 5, 6, 7, 8, 9]
    (missing, twice) = lines(tmp_path / "out0")
    assert "1 of 5 frames are missing, the first is img_00017.jpg" in missing["reason"] and twice["kind"] == "twice"


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    folder = tmp_path / "frames"
    save(folder / "hole", pan(5))
    (folder / "hole/img_00003.png").unlink()
    save(folder / "both", pan(2)), save(folder / "both", pan(2), "img_{:05}.jpg")
    save(folder / "broken", pan(3))
    (folder / "broken/img_00002.png").write_bytes(b"not a picture")
    save(folder / "mixed", pan(2)), Image.fromarray(pan(1)[0, :60]).save(folder / "mixed/img_00003.png")
    save(folder / "deep", pan(2))
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "deep/img_00002.png")
    save(folder / "others", pan(2), "{:05}.png"), save(folder / "more", pan(4)), save(folder / "good", pan(2))
    names = {"hole": 5, "both": 2, "broken": 3, "mixed": 3, "deep": 2, "others": 2, "more": 3, "good": 2, "none": 0}
    save(folder / "none", pan(1))
    file = write(tmp_path / "list.txt", "".join(f"{name} {total} 0\n" for name, total in names.items()))
    data = make(tmp_path / "out", annotations=file, videos=folder)
    assert sorted(rows(data)) == ["good", "more"]
    reasons = {line["path"]: line["reason"] for line in lines(tmp_path / "out")}
    for name, message in {
        "hole": "1 of 5 frames are missing, the first is img_00003.png",
        "both": "has both img_%05d.jpg and img_%05d.png: give --frame-template",
        "broken": "img_00002.png can't be read (no picture)",
        "mixed": "picture 2 is 160x60, those before it 160x120",
        "deep": "img_00002.png can't be read (I;16 pixels)",
        "others": "no picture called img_%05d.jpg or",
        "none": "0 frames from 0 on",
    }.items():
        assert message in reasons.pop(name)
    assert not reasons
    (more,) = lines(tmp_path / "out", "report")
    assert more["path"] == "more" and "1 frames more than the 3 that are listed" in more["reason"]
    for template in ("{:05}.png", "%05d.png"):
        found = make(tmp_path / template, annotations=file, videos=folder, frame_template=template)
        assert list(rows(found)) == ["others"]
    with pytest.raises(ReskdError, match="expected a file name with one number"):
        make(tmp_path / "x", annotations=file, videos=folder, frame_template="img_*.png")


def test_pictures_of_other_sizes_are_no_clip():
    with pytest.raises(DecodeError, match="picture 1 is 40x30, those before it 160x120"):
        encode_pictures(iter([pan(1)[0], pan(1)[0, :30, :40]]), 25)


def frame_list(tmp_path: Path, clips: int = 4) -> dict[str, str]:
    for i in range(clips):
        save(tmp_path / f"frames/{i}", numbered_frames(4 + i, 32, 32))
    file = write(tmp_path / "list.txt", "".join(f"{i} {4 + i} 0\n" for i in range(clips)))
    return {"annotations": str(file), "videos": str(tmp_path / "frames"), "clips_per_shard": 2}


def test_a_killed_run_is_continued_to_the_same_bytes_and_workers_change_none(zygote, tmp_path):
    options = frame_list(tmp_path, clips=2)
    assert finished_before(zygote, tmp_path, Path("rawframes"), "steps", options) == [0] * 5 + [1] * 4
    prepare("rawframes", tmp_path / "two", **options, workers=1)
    assert tree(tmp_path / "two") == tree(tmp_path / "whole")


def test_killed_between_two_clips_it_leaves_nothing_behind(tmp_path, monkeypatch):
    options, read_unchanged = frame_list(tmp_path), make_shards._read_unchanged
    make(tmp_path / "whole", **options)

    def dying(path, probe):
        if path.name == "0.mp4":
            os.truncate(path, 10)
            raise KeyboardInterrupt
        return read_unchanged(path, probe)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(make_shards, "_read_unchanged", dying)
        make(tmp_path / "out", **options)
    assert (tmp_path / "out/.prepare/encoded/0.mp4").exists()
    make(tmp_path / "out", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    with pytest.raises(ReskdError, match="listing: "):
        make(tmp_path / "out", **options, fps=30)


def test_the_bytes_of_a_clip_are_those_of_its_row(tmp_path):
    data = make(tmp_path / "out", **frame_list(tmp_path))
    for entry in data.shards:
        for number, row in enumerate(data.rows(entry.name)):
            assert hashlib.sha256(data.read(entry.name, number)).hexdigest() == row.sha256
