"""Odd, damaged and hostile videos: served right or refused, without a crash, and before memory is taken for what they claim."""

import gc
import io
import itertools
import os
import struct
from functools import partial

import av
import numpy as np
import pytest

from stages.bench.bad_videos import odd_videos as odd
from stages.bench.bad_videos.bombs import bombs
from stages.bench.bad_videos.elements import elements_of
from stages.bench.bad_videos.frame_check import Outcome, check_video, probe_cost
from stages.bench.bad_videos.made_videos import encode_video, numbered_frames
from stages.bench.bad_videos.mutants import MUTATIONS, mutant
from stages.prepare.workers import VideoLimits, Workers, video_limits
from stages.video.container import open_video, read_packets
from stages.video.decode import decode_frames, probe
from stages.video.h264_frame_numbers import first_gap
from stages.video.mjpeg_headers import is_complete, picture_size
from stages.video.pyav_decode import decode_from_start


def gap_in(data: bytes) -> int | None:
    with open_video(data) as (container, stream):
        packets = read_packets(container, stream)
        return first_gap(map(memoryview, packets), stream.codec_context.extradata or b"")


STREAMS = {
    "plain": {}, "B frames": {"b_frames": 3}, "key frames alone": {"gop": 1}, "one key frame": {"gop": 250},
    "4:4:4": {"pixel_format": "yuv444p"}, "10 bits": {"pixel_format": "yuv420p10le"},
    "interlaced": {"options": {"x264-params": "interlaced=1"}}, "slices": {"options": {"x264-params": "slices=4"}},
    "B pyramid": {"options": {"preset": "slow", "x264-params": "b-pyramid=normal:bframes=4:b-adapt=0:scenecut=0"}},
    "scaling lists": {"options": {"x264-params": "cqm=jvt"}}, "start codes": {"container": "mpegts", "b_frames": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_whole_stream_of_h264_misses_no_picture(name):
    assert gap_in(encode_video(numbered_frames(40), **STREAMS[name])) is None


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("lost", [5, 17, 30])
def test_where_a_picture_is_lost_the_frames_are_those_of_one_decoding(container, lost):
    data = odd.without(container, lost)
    assert gap_in(data) == lost
    info = probe(data, every_frame=True)
    frames = decode_from_start(data, np.arange(info.frames))
    assert info.decoder != "decord" and info.frames == 39
    for asked in ([lost], [lost + 1], [38, lost], [lost + 3, 0]):
        assert np.array_equal(decode_frames(data, np.array(asked), info.decoder)[0], frames[asked])


def test_a_decoding_holds_no_frame_and_starts_no_thread():
    data = encode_video(numbered_frames(40))
    decode_from_start(data, np.arange(1))
    gc.collect()
    gc.disable()
    try:
        threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
        for every_frame in (False, True):
            probe(data, every_frame=every_frame)
        decode_from_start(data, np.arange(40))
        assert not [thing for thing in gc.get_objects() if type(thing) is av.VideoFrame]
        assert not threads or len(os.listdir("/proc/self/task")) <= threads
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def small_files() -> list[bytes]:
    """One of each container and of most codecs."""
    wanted = [("H.264", "mp4"), ("H.264, B frames", "matroska"), ("H.264, fragments", "mp4"), ("H.264", "mpegts"),
              ("H.264", "avi"), ("MPEG-4, B frames", "avi"), ("MPEG-4", "mov"), ("HEVC, open groups", "mp4"),
              ("VP8, hidden frames", "webm"), ("MJPEG", "matroska"), ("WMV 2", "asf"), ("Sorenson", "flv"), ("MPEG-2", "mpeg"),
              ("GIF", "gif")]  # fmt: skip
    return [odd.KINDS[kind](container) for kind, container in wanted]


@pytest.mark.parametrize("seed", range(56))
def test_a_mutant_is_refused_or_shows_the_frames_of_one_decoding(small_files, seed):
    kind, data = mutant(small_files[seed % len(small_files)], seed)
    assert check_video(data, seed, sets=3).wrong == "", kind


def test_a_mutant_follows_from_its_seed_and_all_ways_are_taken(small_files):
    made = [mutant(small_files[seed % len(small_files)], seed) for seed in range(100)]
    assert made == [mutant(small_files[seed % len(small_files)], seed) for seed in range(100)]
    assert {kind for kind, _ in made} == set(MUTATIONS)
    assert all(data not in small_files for _, data in made)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts", "flv"])
def test_elements_cover_a_file(container):
    data = odd.KINDS["H.264"](container)
    found = elements_of(data)
    tops = sorted((e.start, e.end) for e in found if e.parent is None)
    assert tops[-1][1] == len(data) and all(a[1] == b[0] for a, b in itertools.pairwise(tops))
    for e in found:
        assert e.start <= e.content <= e.end
        if e.parent is not None:
            assert found[e.parent].content <= e.start and e.end <= found[e.parent].end


# What went wrong once: decoders that hide damage, or an index that lies; by codec and container, and the seed of the mutant.
SEEN = {("WMV 1", "avi"): 431, ("MJPEG", "mov"): 928, ("VP8, hidden frames", "matroska"): 1807, ("MJPEG", "asf"): 1909,
        ("VP8, hidden frames", "asf"): 5228, ("MPEG-4, MS", "avi"): 6272, ("WMV 2", "avi"): 6779, ("MJPEG", "avi"): 6786,
        ("FFV1", "matroska"): 9725, ("MPEG-1", "matroska"): 22328, ("HuffYUV", "asf"): 26813}  # fmt: skip


@pytest.mark.parametrize("kind", SEEN)
def test_mutants_that_showed_other_frames(kind):
    codec, container = kind
    for seed in range(SEEN[kind], SEEN[kind] + 2):
        assert check_video(mutant(odd.KINDS[codec](container), seed)[1], seed, sets=8).wrong == ""


BOMBS = dict(bombs())


@pytest.fixture(scope="module")
def bomb_costs() -> dict[str, Outcome]:
    """What the quick check of each bomb costs, in a process that may grow by 400 MB."""
    with Workers(1, VideoLimits(20, 0, 4 * 10**8)) as workers:
        tasks = [partial(limited_cost, data) for data in BOMBS.values()]
        return dict(zip(BOMBS, workers.map(tasks, lambda reason: Outcome("crashed", reason, 0, 0)), strict=True))


def limited_cost(data: bytes) -> Outcome:
    with video_limits(0):
        return probe_cost(data)


def test_a_bomb_takes_neither_memory_nor_time(bomb_costs):
    for name, outcome in bomb_costs.items():
        assert outcome.served != "crashed", (name, outcome)
        assert outcome.seconds < 2 and outcome.peak < 2e8, (name, outcome)


@pytest.mark.parametrize(("part", "why"), [
    ("1,000,000,000 frames of one size", "claims 1000000000 frames"), ("1,000,000,000 times", "claims 1000000000 frames"),
    ("frames in a fragment (trun)", "frames in"), ("in each of 100 fragments", "frames in"), ("compressed index", "frames in"),
    ("1,111 hours", "hours; at most 168"), ("200 hours", "claims 200 hours"), ("65,535 x 65,535 px, GIF", ""),
    ("65,536 x 65,536 px of H.264", ""), ("8,192 x 32,768 px of H.264", ""), ("px of VP8", ""), ("in a JPEG", ""),
])  # fmt: skip
def test_a_bomb_is_refused(bomb_costs, part, why):
    named = [outcome for name, outcome in bomb_costs.items() if part in name]
    assert named and all(outcome.served == "refused" and why in outcome.reason for outcome in named), named


def test_sound_may_have_more_samples_than_a_video_may_have_frames():
    """A table of sound in a MOV counts each value: two minutes have 5 million."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        video = output.add_stream("mpeg4", rate=8)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound = output.add_stream("pcm_u8", rate=44100, layout="mono")
        for pixels in numbered_frames(8):
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 44100 * 120), np.uint8), format="u8", layout="mono")
        silence.sample_rate = 44100
        output.mux(sound.encode(silence))
    assert probe(file.getvalue()).frames == 8


def test_a_jpeg_picture_must_bring_its_tables():
    """A decoder takes tables that are missing from the picture before, and a seek leaves that one out."""
    data = odd.KINDS["MJPEG"]("matroska")
    with open_video(data) as (container, stream):
        pictures = [bytes(packet) for packet in read_packets(container, stream)]
    assert all(is_complete(picture) and picture_size(picture) == {struct.pack(">2H", 64, 96)} for picture in pictures)
    for marker in (b"\xff\xdb", b"\xff\xc4", b"\xff\xc0"):
        assert not is_complete(pictures[0].replace(marker, b"\xff\xfe"))  # a comment in its place
    assert probe(data).decoder == "decord"
    place = data.index(b"\xff\xdb", data.index(pictures[7]))
    broken = data[:place] + b"\xff\xfe" + data[place + 2 :]
    info = probe(broken)
    assert info.decoder == "pyav-seek" and "packet 7 is marked as a key frame" in info.fallback
    assert np.array_equal(
        decode_frames(broken, np.array([7]), "pyav-seek")[0], decode_from_start(broken, np.array([7]))
    )
