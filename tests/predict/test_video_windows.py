"""Windows: their frames, their times; videos of hours in flat memory."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import psutil
import pytest
import torch

from cache.errors import ReskdError
from cache.view import ViewPolicy, sample_view
from stages.bench.bad_videos import odd_videos
from stages.predict import decoding
from stages.predict.decoding import Decoding
from stages.predict.streaming import WindowStream
from stages.predict.tasks import Task, Views
from stages.predict.videos import FileVideo
from stages.predict.windows import plan_windows
from stages.video.container import open_video
from stages.video.decode import decode_frames, probe, probe_part
from stages.video.errors import DecodeError
from stages.video.frame_times import FrameTimes, frame_times
from stages.video.render import render
from tests.media import encode_video, numbered_frames
from tests.predict.runs import lines_of, read_lines

STILL = ViewPolicy(num_frames=4, jitter=False, crop="center", flip=0.0)


def times(seconds, duration) -> FrameTimes:
    return FrameTimes(np.array(seconds, float), None, duration, 8, 8)


def answers(path, views: Views) -> list:
    """What a worker answers about a video: the look, and then the rest."""
    answer = Decoding([FileVideo(path)], views, threads=1).begin(0, 1)
    found = [answer(Task(0))]
    assert found[0].error is None, found[0].error
    if found[0].clips is None:
        found += [answer(Task(0, first)) for first in range(0, found[0].facts.windows, views.at_once)]
    return found


# ---- which frames ----


def test_windows_have_the_nearest_frames_and_end_with_the_video():
    even = plan_windows(times(np.arange(41) / 4, 10.25), 2.0, 1.0)
    assert even.starts.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8.25] and even.ends[-2:].tolist() == [10, 10.25]
    assert even.firsts.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 33] and set(even.counts.tolist()) == {8}
    slow_then_fast = plan_windows(times([0, 4, 8, 9, 9.5], 10.0), 5.0, 5.0)
    assert slow_then_fast.firsts.tolist() == [0, 1] and slow_then_fast.counts.tolist() == [1, 4]
    for window in (10.25, 99.0, None):  # a short clip is one window
        one = plan_windows(times(np.arange(41) / 4, 10.25), window, window)
        assert (one.firsts.tolist(), one.counts.tolist(), one.ends.tolist()) == ([0], [41], [10.25])
    part = plan_windows(times(np.arange(41) / 4, 10.25), 1.0, 1.0, start=8, frames=10)
    assert part.firsts.tolist() == [8, 12, 14] and part.ends.tolist() == [1, 2, 2.5]
    with pytest.raises(DecodeError, match="more than 1048576 windows"):
        plan_windows(times(np.arange(41) / 4, 10.25), 2.0, 1e-7)


def kinds():
    yield "plain.mp4", encode_video(numbered_frames(40))
    yield "b-frames.mkv", encode_video(numbered_frames(40), container="mkv", b_frames=2)
    yield "turned.mp4", encode_video(numbered_frames(24), rotation=90)
    yield "mpeg2.mpg", encode_video(numbered_frames(40), fps=25, container="mpeg", codec="mpeg2video")
    yield "vp8.webm", encode_video(numbered_frames(30), container="webm", codec="libvpx")
    yield "slow_then_fast.mp4", odd_videos.slow_then_fast()
    yield "not_coded.avi", odd_videos.not_coded()
    yield "a_key_frame_lost.mp4", odd_videos.without("mp4", 24)
    yield "open_groups.mp4", odd_videos.open_groups("libx264", n=40)


@pytest.mark.parametrize(("name", "data"), list(kinds()), ids=[name for name, _ in kinds()])
def test_the_pictures_of_windows_are_those_of_parts_of_the_video(name, data, tmp_path):
    """By hand: `probe_part` says which frames a window has, `decode_frames` decodes them."""
    (tmp_path / name).write_bytes(data)
    first, *rest = answers(tmp_path / name, Views(STILL, 16, None, 1.0, 0.4, at_once=3))
    clips = torch.cat([a.clips for a in (rest or [first])]).numpy()
    facts = first.facts
    assert len(clips) == facts.windows == len(facts.starts) > 1
    for w, (start, end) in enumerate(zip(facts.starts.tolist(), facts.ends.tolist(), strict=True)):
        info, number, _ = probe_part(data, start, end)
        view = sample_view(STILL, shard="", key="", index=0, num_frames=info.frames, aspect=info.width / info.height)
        pictures, _ = decode_frames(data, number + view.frames, info.decoder)
        assert np.array_equal(clips[w, 0], render(pictures, view, 16)), (name, w)
    assert facts.seconds == pytest.approx(probe_part(data, 0, 1e5)[2])


def test_a_worker_that_begins_in_the_middle_makes_the_same_pictures(tmp_path):
    """As one does that takes over from one that ended."""
    (tmp_path / "a.mp4").write_bytes(encode_video(numbered_frames(60)))
    views = Views(STILL, 16, None, 1.0, 0.5, at_once=2)
    found = answers(tmp_path / "a.mp4", views)
    for window in 4, 8:
        again = Decoding([FileVideo(tmp_path / "a.mp4")], views, 1).begin(0, 1)(Task(0, window))
        assert torch.equal(again.clips, found[1 + window // 2].clips)


def test_a_file_of_many_frames_is_decoded_from_its_start(bright, monkeypatch):
    """As a short one. Only between the two, the decoder that `prepare` would choose."""
    monkeypatch.setattr(decoding, "SHORT", 80)
    decoders = []
    for most in (80, 81):
        monkeypatch.setattr(decoding, "LONG", most)
        (found,) = answers(bright.film, Views(STILL, 16, None, None, None, at_once=1))  # 81 frames
        decoders.append(found.decoder)
    assert decoders[0] == "pyav" and decoders[1] == probe(bright.film.read_bytes()).decoder != "pyav"


def test_a_video_may_lack_a_tenth_of_its_frames_at_its_end(bright):
    """Of 17 frames that its packets promise, one comes out: nobody may see it 17 times. Of 88, 81 come out."""
    for data, promised, said in (
        (encode_video(numbered_frames(1)), 17, "it ends after 1 frames; its packets promise 17"),
        (bright.film.read_bytes(), 92, "it ends after 81 frames; its packets promise 92"),
        (bright.film.read_bytes(), 88, None),
    ):
        with open_video(data) as (_, stream):
            width, height = stream.codec_context.width, stream.codec_context.height
        found = FrameTimes(np.arange(promised) / 4, None, promised / 4, width, height)
        view = sample_view(STILL, shard="", key="", index=0, num_frames=promised, aspect=width / height)
        view = replace(view, frames=np.array([0, 0, 0, promised - 1]))
        stream = WindowStream(plan_windows(found, None, None), found, lambda w, view=view: [view], 16, None)
        with nullcontext() if said is None else pytest.raises(DecodeError, match=said):
            assert len([clips for clips in stream.run(data, 1) if clips is not None]) == 1


# ---- long videos ----


def test_hours_of_video_in_flat_memory(bright, tmp_path):
    """10 hours in 6000 frames, in a file of 3 GB, nearly all of it a hole that is skipped."""
    film = tmp_path / "long.mp4"
    with av.open(str(film), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=1, options={"preset": "ultrafast", "threads": "1"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for i in range(6000):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 + 200 * (i // 1500 % 2), np.uint8))
            frame.pts = 6 * i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    hole = 3 * 2**30
    with open(film, "ab") as file:
        file.write((1).to_bytes(4, "big") + b"free" + hole.to_bytes(8, "big"))
        file.truncate(file.tell() - 16 + hole)
    answer = Decoding([FileVideo(film)], Views(STILL, 16, None, 60.0, 30.0, at_once=64), 1).begin(0, 1)
    process = psutil.Process()
    base = process.memory_info().rss
    look = answer(Task(0))
    assert look.facts.windows == 1199 and 35_994 <= look.facts.seconds <= 36_000
    sizes = []
    for first in range(0, 1199, 64):
        assert len(answer(Task(0, first)).clips)
        sizes.append(process.memory_info().rss)
    assert max(sizes[4:]) - sizes[4] < 8e6 and max(sizes) - base < 60e6
    (line,) = lines_of(bright.net, [film], tmp_path, "window=600", "timeline=true", "threshold=0.9", "least=2000")
    borders = [0, 9000, 18000, 27000, line["seconds"]]
    assert [(s["start"], s["end"]) for s in line["segments"]] == list(pairwise(borders))
    assert [s["label"] for s in line["segments"]] == ["dark", "[b]right"] * 2
    (line,) = lines_of(bright.net, [film], tmp_path)  # one view over ten hours
    assert (line["frames"], line["windows"], line["decoder"]) == (6000, 1, "pyav")
    assert process.memory_info().rss - base < 100e6


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_in_the_middle_of_a_long_video_costs_its_line_alone(bright, tmp_path, workers):
    """Some of its windows are scored by then, and others are under way."""
    data = bytearray(encode_video(numbered_frames(120), gop=120))
    middle = data.index(b"mdat") + len(data) // 2
    data[middle : middle + 800] = bytes(800)
    (tmp_path / "a.mp4").write_bytes(data)
    changes = ("window=0.5", f"loader.workers={workers}", "batch_size=3", "timeline=true")
    inputs = [bright.dark, tmp_path / "a.mp4", bright.film, tmp_path / "a.mp4", bright.light]
    with pytest.raises(ReskdError, match="2 of 5 videos"):
        lines_of(bright.net, inputs, tmp_path, *changes)
    dark, broken, film, again, light = read_lines(tmp_path / "out.jsonl")
    assert "frame" in broken["error"] and again == broken
    assert [len(line["segments"]) for line in (dark, film, light)] == [1, 3, 1]


def test_frame_times_of_frames_without_times():
    """Raw MPEG-4 in a container without times: by the rate."""
    data = encode_video(numbered_frames(30), fps=10, container="mpegts")
    found = next(f for f in frame_times(data) if f)
    assert len(found.seconds) == 30 and found.seconds[1] == pytest.approx(0.1) and found.duration == pytest.approx(3.0)
