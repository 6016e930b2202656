"""The annotated copy of a video: its labels, its times, what it says of files that can't be encoded."""

import av
import numpy as np
import pytest

from cache.errors import ReskdError
from stages.bench.bad_videos import odd_videos
from stages.predict import annotate
from stages.predict.steps import Steps
from stages.predict.videos import FileVideo
from stages.prepare.prepare import prepare
from stages.remote.url_path import UrlPath
from stages.video.frame_times import frame_times
from tests.media import encode_video, numbered_frames
from tests.predict.runs import lines_of


def test_the_annotated_video_shows_the_label_of_its_time(bright, tmp_path):
    lines_of(bright.net, [bright.film], tmp_path, "window=1", f"annotate={tmp_path / 'a.mp4'}")
    with av.open(str(tmp_path / "a.mp4")) as video:
        frames = [(float(f.time), f.to_ndarray(format="rgb24")) for f in video.decode(video=0)]
    assert [t for t, _ in frames] == pytest.approx(np.arange(81) / 4, abs=1e-3)
    height, width = frames[0][1].shape[:2]
    assert height % 2 == width % 2 == 0 and width >= 320
    picture = 32 * width // 48
    levels = [frame[: picture - 8].mean() for _, frame in frames]
    assert max(levels[:39]) < 60 and min(levels[42:62]) > 180
    patch = [frame[picture + 8 : picture + 14, 8:14].mean((0, 1)) for _, frame in frames]  # the colour of the class
    assert np.abs(patch[5] - patch[75]).max() < 25 < np.abs(patch[5] - patch[50]).max()
    assert not list(tmp_path.glob(".*partial"))


def test_parts_of_a_film_in_a_data_set(bright, tmp_path):
    """The seconds of a part count from its first frame."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "filmfilmfil.mp4").write_bytes(bright.film.read_bytes())
    annotations = tmp_path / "k.csv"
    annotations.write_text("label,youtube_id,time_start,time_end\nday,filmfilmfil,8,15\n")
    prepare("kinetics", tmp_path / "data", annotations=annotations, videos=tmp_path / "videos", workers=0)
    changes = ("window=1", "timeline=true", f"annotate={tmp_path / 'a.mp4'}")
    (line,) = lines_of(bright.net, [tmp_path / "data"], tmp_path, *changes)
    assert [(s["start"], s["end"], s["label"]) for s in line["segments"]] == [(0, 2, "dark"), (2, 7, "[b]right")]
    assert (line["key"], line["labels"], line["frames"], line["seconds"]) == (
        "filmfilmfil_000008_000015",
        ["day"],
        28,
        7,
    )
    with av.open(str(tmp_path / "a.mp4")) as video:
        levels = [f.to_ndarray(format="rgb24")[:100].mean() for f in video.decode(video=0)]
    assert len(levels) == 28 and max(levels[:8]) < 60 and min(levels[8:]) > 180
    (line,) = lines_of(bright.net, [tmp_path / "data"], tmp_path)
    assert line["label"] == "[b]right" and line["frames"] == 28


def test_annotate_without_windows_at_a_url(bright, tmp_path, s3):
    url = UrlPath(s3.bucket) / "annotated" / "a.mp4"
    lines_of(bright.net, [bright.light], tmp_path, f"annotate={url}")
    with av.open(url.open()) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8


@pytest.mark.parametrize("store", [False, True])
def test_annotate_says_which_file_cannot_be_encoded(bright, tmp_path, monkeypatch, s3, store):
    """MPEG-2 has no such fine times."""
    path = UrlPath(s3.bucket) / "none" / "a.mp4" if store else tmp_path / "a.mp4"
    monkeypatch.setattr(annotate, "ENCODERS", ("mpeg2video",))
    with pytest.raises(ReskdError, match=rf"{path} can't be encoded by mpeg2video \(.+\): leave annotate out"):
        lines_of(bright.net, [bright.light], tmp_path, f"annotate={path}")
    assert not path.exists() and not [*tmp_path.glob("*.mp4"), *tmp_path.glob(".*")]


def test_annotate_names_the_signs_that_its_font_lacks(bright, tmp_path, capfd):
    steps = Steps(np.array([0.0, 1, 2]), np.array([[1, 0, 0], [0, 1, 0]], np.float32))
    annotate.annotate_video(
        tmp_path / "a.mp4", FileVideo(bright.light), steps, ("\u6253 \u7403", "caf\u00e9", "\u8df3")
    )
    said = capfd.readouterr().err
    assert said.count("warning annotate: its font has no signs for \u6253 \u7403: they are drawn as boxes") == 1


def test_annotated_frames_have_the_times_of_frames_in_the_windows(tmp_path):
    """Raw MPEG-4 in a container without times, and frames at uneven times."""
    steps = Steps(np.array([0.0, 4]), np.ones((1, 1), np.float32))
    for name, data in (
        ("rate.ts", encode_video(numbered_frames(20), fps=10, container="mpegts")),
        ("uneven.mp4", odd_videos.slow_then_fast()),
    ):
        (tmp_path / name).write_bytes(data)
        annotate.annotate_video(tmp_path / "a.mp4", FileVideo(tmp_path / name), steps, ("a",))
        found = next(times for times in frame_times(data) if times)
        with av.open(str(tmp_path / "a.mp4")) as video:
            assert [float(f.time) for f in video.decode(video=0)] == pytest.approx(found.seconds, abs=1e-3)
