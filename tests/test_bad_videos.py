"""Odd, damaged and hostile videos: served right or refused, without a crash, and before memory is taken for what they claim."""

import gc
import os

import av
import numpy as np
import pytest

from stages.bench import odd_videos as odd
from stages.bench.made_videos import encode_video, numbered_frames
from stages.video.container import open_video, read_packets
from stages.video.decode import decode_frames, probe
from stages.video.h264_frame_numbers import first_gap
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
