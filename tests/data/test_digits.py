import io

import numpy as np
import pytest

from stages.demo.digits import CLASSES, SHARES, draw_clip, encode_clip, handwriting, make_digits

RIGHT, LEFT, DOWN = (CLASSES.index(f"3-{direction}") for direction in ("right", "left", "down"))


def draw(label: int, index: int = 0, **kwargs) -> np.ndarray:
    return draw_clip(split="train", label=label, seed=0, index=index, **kwargs)


def test_a_clip_is_a_pure_function_of_its_arguments():
    clip = draw(RIGHT, size=32, frames=6)
    assert clip.shape == (6, 32, 32, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, draw(RIGHT, size=32, frames=6))
    others = [draw(RIGHT, index=1), draw(DOWN), draw_clip(split="val", label=RIGHT, seed=0, index=0)]
    others.append(draw_clip(split="train", label=RIGHT, seed=1, index=0))
    assert all(not np.array_equal(other, draw(RIGHT)) for other in others)


def test_opposite_directions_show_the_same_frames_backwards():
    for index in range(5):
        assert np.array_equal(draw(RIGHT, index), draw(LEFT, index)[::-1])


def test_the_middle_frame_is_the_same_for_every_direction_and_the_first_is_not():
    right, down = draw(RIGHT, frames=7), draw(DOWN, frames=7)
    assert np.array_equal(right[3], down[3])
    assert not np.array_equal(right[0], down[0])


@pytest.mark.parametrize(("name", "axis", "sign"), [("right", 1, 1), ("left", 1, -1), ("down", 0, 1), ("up", 0, -1)])
def test_the_digit_moves_as_its_class_says(name, axis, sign):
    """Only the digit moves, so the changes of the first step lie before those of the last, on the direction's axis."""
    travelled = []
    for index in range(10):
        clip = draw(CLASSES.index(f"8-{name}"), index).astype(float).sum(-1)
        change = np.abs(np.diff(clip, axis=0))[[0, -1]]
        place = (change * np.indices(change.shape[1:])[:, None]).sum((2, 3)) / change.sum((1, 2))  # [2 axes, 2 times]
        travelled.append(place[:, 1] - place[:, 0])
    mean = np.mean(travelled, axis=0)
    assert sign * mean[axis] > 3 and abs(mean[1 - axis]) < 1


def test_the_first_frame_does_not_give_the_direction_away():
    """Nearest neighbour among the first frames of other clips of the same digit: chance is 25 %, the order gives 100 %.

    The place of the digit gives away a part: a digit which goes right starts 5 of 40 pixels further left on average.
    """
    first = CLASSES.index("3-right")
    labels = np.arange(400) % 4
    pictures = np.stack([draw(first + label, index)[0].mean(-1).ravel() for index, label in enumerate(labels)])
    pictures = (pictures - pictures.mean(1, keepdims=True)) / pictures.std(1, keepdims=True)
    distance = -pictures @ pictures.T
    np.fill_diagonal(distance, np.inf)
    assert np.mean(labels[distance.argmin(1)] == labels) < 0.65


def test_splits_share_no_handwriting():
    splits = {name: [picture.tobytes() for digit in handwriting(name) for picture in digit] for name in SHARES}
    assert sum(map(len, splits.values())) == 1797
    for name, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(splits[name]) & set(splits[other])


def test_the_files_do_not_depend_on_workers_or_on_what_is_there(tmp_path):
    make_digits(tmp_path / "a", clips={"train": 45, "val": 3}, workers=1, frames=4)
    make_digits(tmp_path / "b", clips={"train": 20}, workers=3, frames=4)
    kept = tmp_path / "b/train/0-left/000001.mp4"
    before = kept.stat().st_mtime_ns
    make_digits(tmp_path / "b", clips={"train": 45, "val": 3}, workers=3, frames=4)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.*"))
    assert len(files) == 48 and str(files[0]) == "train/0-down/000002.mp4"
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert kept.stat().st_mtime_ns == before
    assert len(list((tmp_path / "a/train").iterdir())) == len(CLASSES) == 40


def test_the_encoded_clip_decodes_to_the_drawn_one():
    decord = pytest.importorskip("decord")
    clip = draw(RIGHT)
    video = decord.VideoReader(io.BytesIO(encode_clip(clip)), num_threads=1)
    decoded = video.get_batch(range(len(video))).asnumpy()
    assert decoded.shape == clip.shape
    assert np.abs(decoded.mean(-1) - clip.mean(-1)).mean() < 6  # grey levels; colour is stored at half the resolution
