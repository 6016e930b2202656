"""A frame is the one that FFmpeg shows at its place, turned as players turn it, whatever else is asked for; or an error."""

import functools
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.bench.bad_videos import odd_videos as odd
from stages.video.decode import PartError, decode_frames, probe, probe_part
from stages.video.errors import DecodeError
from stages.video.pyav_decode import decode_from_start
from stages.video.silence import silent_stderr
from tests.media import encode_video, moving_square, numbered_frames, read_numbers

KINDS = {
    "false sync samples": odd.false_sync_samples,
    "false sync samples, MPEG-4": lambda: odd.false_sync_samples("mpeg4"),
    "intra refresh": odd.intra_refresh,
    "begins with P frames": odd.starts_on_nonkey,
    "begins with P frames, TS": lambda: odd.starts_on_nonkey(container="mpegts"),
    "cropped on the left": odd.cropped_left,
    "two frame rates": odd.slow_then_fast,
    "other picture parameters": odd.other_picture_parameters,
    "MPEG-4, pictures that are not coded": odd.not_coded,
    "mirrored": lambda: odd.with_matrix(encode_video(numbered_frames(20)), -1, 0, 0, 1),
    "open groups, HEVC": odd.open_groups,
    "open groups, HEVC, MKV": lambda: odd.open_groups("libx265", "mkv"),
    "open groups, H.264": lambda: odd.open_groups("libx264"),
    "open groups, H.264, TS": lambda: odd.open_groups("libx264", "mpegts"),
    "open groups, MPEG-2, TS": lambda: odd.open_groups("mpeg2video", "mpegts"),
    "B frames": lambda: encode_video(numbered_frames(60), b_frames=3),
    "VP8, hidden frames": lambda: encode_video(numbered_frames(60), container="webm", codec="libvpx",
                                               options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "VP9": lambda: encode_video(numbered_frames(60), container="webm", codec="libvpx-vp9"),
    "AV1": lambda: encode_video(numbered_frames(40), container="mp4", codec="libsvtav1"),
    "MPEG-4, AVI, B frames": lambda: encode_video(numbered_frames(40), container="avi", codec="mpeg4", options={"bf": "2"}),
    "FLV": lambda: encode_video(numbered_frames(40), container="flv", codec="flv"),
    "WMV": lambda: encode_video(numbered_frames(40), container="asf", codec="wmv2"),
    "10 bits": lambda: encode_video(numbered_frames(30), codec="libx265", options={"x265-params": "log-level=none"}),
}  # fmt: skip


@functools.cache
def kind(name: str) -> bytes:
    return KINDS[name]()


@functools.cache
def truth(name: str) -> tuple[np.ndarray, str]:
    """All frames, decoded one after the other, and the decoder that `probe` chose."""
    info = probe(kind(name))
    return decode_from_start(kind(name), np.arange(info.frames)), info.decoder


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(KINDS)), places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=9))
def test_pixels_never_depend_on_what_else_is_asked(name, places):
    frames, decoder = truth(name)
    asked = np.array([int(place * len(frames)) for place in places])
    pictures, served = decode_frames(kind(name), asked, decoder)
    assert np.array_equal(pictures, frames[asked]) and served == decoder


@settings(max_examples=30)
@given(data=st.data())
def test_nor_in_real_videos(clips, data):
    left_out = ["corrupted.mp4"]
    left_out += ["nasa_13013.mp4", "bt709_full_range.mp4"]  # large, and H.264 in MP4 as others are
    files = sorted(path for path in clips.iterdir() if path.name not in left_out)
    frames, decoder, video = _whole_file(data.draw(st.sampled_from(files)))
    asked = np.array(data.draw(st.lists(st.integers(0, len(frames) - 1), min_size=1, max_size=8)))
    pictures, served = decode_frames(video, asked, decoder)
    assert np.array_equal(pictures, frames[asked]) and served == decoder


@functools.cache
def _whole_file(path: Path) -> tuple[np.ndarray, str, bytes]:
    video = path.read_bytes()
    info = probe(video, every_frame=True)
    return decode_from_start(video, np.arange(info.frames)), info.decoder, video


def test_decoders_print_nothing(capfd):
    for name in KINDS:
        data = kind(name)
        capfd.readouterr()  # what encoders print
        info = probe(data)
        decode_frames(data, np.array([info.frames - 1, 3, info.frames // 2]), info.decoder)
        assert capfd.readouterr() == ("", ""), name


def test_silence_ends_in_this_process_and_in_a_child_that_is_forked_meanwhile(capfd):
    with silent_stderr(), silent_stderr():
        os.write(2, b"lost")
        child = os.fork()
        if not child:
            os.write(2, b"child")
            os._exit(0)
        os.waitpid(child, 0)
    os.write(2, b" parent")
    assert capfd.readouterr() == ("", "child parent")


@pytest.mark.parametrize(("name", "first", "count"), [
    ("false sync samples", 0, 40), ("false sync samples, MPEG-4", 0, 40), ("intra refresh", 0, 40),
    ("begins with P frames", 12, 28), ("begins with P frames, TS", 12, 28), ("two frame rates", 0, 150),
    ("open groups, HEVC", 0, 60), ("open groups, MPEG-2, TS", 0, 60), ("VP8, hidden frames", 0, 60),
])  # fmt: skip
def test_each_frame_shows_its_number(name, first, count):
    frames, _ = truth(name)
    assert read_numbers(frames) == list(range(first, first + count))


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_video_without_its_first_key_frame_may_be_unreadable(codec):
    with pytest.raises(DecodeError, match="does not begin with a key frame"):
        probe(odd.starts_on_nonkey(codec, "webm"))


@pytest.mark.parametrize("container", ["mp4", "mpegts", "matroska"])
def test_frames_that_change_their_size_are_refused_in_every_container(container):
    with pytest.raises(DecodeError, match="frames change size"):
        probe(odd.size_change(container))


# What a matrix does to a picture whose pixel (x, y) is f(x, y), by ISO 14496-12: it goes to (a x + c y, b x + d y).
MATRICES = {
    (1, 0, 0, 1): lambda f: f,
    (-1, 0, 0, 1): lambda f: f[:, :, ::-1],
    (1, 0, 0, -1): lambda f: f[:, ::-1],
    (-1, 0, 0, -1): lambda f: np.rot90(f, 2, (1, 2)),
    (0, 1, -1, 0): lambda f: np.rot90(f, -1, (1, 2)),  # clockwise
    (0, -1, 1, 0): lambda f: np.rot90(f, 1, (1, 2)),
    (0, 1, 1, 0): lambda f: f.transpose(0, 2, 1, 3),
    (0, -1, -1, 0): lambda f: np.rot90(f, 2, (1, 2)).transpose(0, 2, 1, 3),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_display_matrix_is_applied_whole(matrix):
    coded = moving_square(8, 64, 96)
    data = odd.with_matrix(encode_video(coded), *matrix)
    info = probe(data)
    wanted = MATRICES[matrix](coded)
    assert (info.height, info.width) == wanted.shape[1:3]
    mirrored = matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0
    assert not (mirrored and info.decoder == "decord")
    for decoder in {info.decoder, "pyav"}:
        pictures, _ = decode_frames(data, np.arange(8), decoder)
        assert np.abs(pictures.astype(int) - wanted).mean() < 4


def test_a_matrix_that_turns_by_no_right_angle_is_refused():
    with pytest.raises(DecodeError, match="turns by no right angle"):
        probe(odd.with_matrix(encode_video(numbered_frames(8)), 1, 1, -1, 1))


@pytest.mark.parametrize(("start", "end", "first", "count"), [
    (10, 12, 50, 100), (2, 6, 10, 20), (0, 12, 0, 150), (9.8, 10.02, 49, 2), (11.999, 12.0, 149, 1), (3.0, 3.01, 15, 1),
])  # fmt: skip
def test_a_part_has_the_frames_of_its_time(start, end, first, count):
    info, begins, duration = probe_part(kind("two frame rates"), start, end)
    assert (begins, info.frames, duration) == (first, count, 12.0)


@settings(max_examples=30)
@given(start=st.floats(0, 4.9), length=st.floats(0.01, 9))
def test_at_a_constant_rate_a_part_is_what_the_rate_says(start, length):
    info, first, _ = probe_part(kind("B frames"), start, start + length)
    assert abs(first - start * 8) <= 0.5 + 1e-9
    assert info.frames == 1 or abs(first + info.frames - min((start + length) * 8, 60)) <= 0.5 + 1e-9


def test_a_part_behind_the_end_is_an_error_that_says_where_the_end_is():
    with pytest.raises(PartError, match=r"from 12 to 13 s begins after the end of the video, at 12.00 s"):
        probe_part(kind("two frame rates"), 12, 13)


@pytest.mark.parametrize("packet", [5, 12, 25])
def test_damage_in_the_middle_is_found_by_the_full_check(packet):
    clean = encode_video(moving_square(40, 128, 192, seed=3), gop=12)
    data = odd.damaged(clean, packet)
    with pytest.raises(DecodeError, match=r"damaged|can be decoded after"):
        probe(data, every_frame=True)
    try:
        info = probe(data)
    except DecodeError:  # the quick check decodes some frames, and may meet it
        return
    frames = decode_from_start(clean, np.arange(40))
    far = np.array([0, 39])
    assert np.array_equal(decode_frames(data, far, info.decoder)[0], frames[far])


@pytest.mark.parametrize(("named", "matrix"), [(1, "ITU709"), (6, "ITU601"), (None, "ITU601")])
def test_colours_are_made_by_the_matrix_that_the_file_names(named, matrix):
    options = {"crf": "12", "preset": "ultrafast", "bf": "0"} | ({"colorspace": str(named)} if named else {})
    data = encode_video(moving_square(6, 64, 96, seed=5), options=options)
    info = probe(data)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        wanted = {
            name: frame.reformat(format="rgb24", src_colorspace=name).to_ndarray() for name in ("ITU601", "ITU709")
        }
    for decoder in {info.decoder, "pyav"}:
        assert np.array_equal(decode_frames(data, np.array([0]), decoder)[0][0], wanted[matrix])
    assert not np.array_equal(wanted["ITU601"], wanted["ITU709"])


@pytest.mark.parametrize("file", ["false_sync/somekey_h264.mp4", "false_sync/nostss_mpeg4.mp4", "intra_refresh/ir.mp4"])
def test_reported_files_give_exact_frames(cases, file):
    data = (cases / file).read_bytes()
    info = probe(data, every_frame=True)
    for asked in ([7], [14], [28], [0, 19, 39, 59], [30], list(range(60))):
        assert read_numbers(decode_frames(data, np.array(asked), info.decoder)[0]) == asked


def test_the_reported_cut_stream_has_69_frames(cases):
    data = (cases / "starts_on_nonkey/nonkey.mkv").read_bytes()
    info = probe(data)
    assert info.frames == 69
    alone = [read_numbers(decode_frames(data, np.array([i]), info.decoder)[0])[0] for i in range(69)]
    assert (
        alone
        == read_numbers(decode_frames(data, np.arange(69), info.decoder)[0])
        == list(range(alone[0], alone[0] + 69))
    )


@pytest.mark.parametrize(("file", "why"), [
    ("starts_on_nonkey/nonkeyv8.webm", "does not begin with a key frame"), ("size_change/reschange_mid.mp4", "change size"),
    ("damaged_gop/dm_h264_flip_i.mp4", "frame 12 is damaged"),
])  # fmt: skip
def test_reported_files_that_no_decoder_can_serve_are_refused(cases, file, why):
    with pytest.raises(DecodeError, match=why):
        probe((cases / file).read_bytes(), every_frame=True)


def test_the_reported_crop_has_one_size(cases):
    data = (cases / "size_change/crop.mp4").read_bytes()
    info = probe(data)
    for decoder in {info.decoder, "pyav"}:
        assert decode_frames(data, np.array([3]), decoder)[0].shape == (1, 80, 96, 3)


def test_the_reported_segments(cases):
    data = (cases / "vfr_segment/videos/abcdefghijk.mp4").read_bytes()
    assert [probe_part(data, *times)[1] for times in ((10, 12), (2, 6))] == [50, 10]
    assert [probe_part(data, *times)[0].frames for times in ((10, 12), (2, 6))] == [100, 20]


@pytest.mark.parametrize(("file", "mirrored"), [("m_hflip.mp4", "hflip"), ("m_rot90flip.mp4", "rot90flip")])
def test_the_reported_mirrors_are_mirrored(cases, file, mirrored):
    data = (cases / "mirror_matrix" / file).read_bytes()
    info = probe(data)
    shown = decode_frames(data, np.arange(info.frames), info.decoder)[0]
    numbers = shown[:, :, ::-1] if mirrored == "hflip" else shown.transpose(0, 2, 1, 3)
    candidates = (numbers, numbers[:, ::-1], numbers[:, :, ::-1])
    assert list(range(30)) in [read_numbers(c) for c in candidates]
