"""Frame i is frame i, whichever decoder serves it and whatever else is asked for; what can't be decoded says why."""

import importlib.util
import io
import os
import subprocess
import sys
from datetime import timedelta

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.video import decord_decode
from stages.video.decode import VideoInfo, decode_frames, decoder_identity, probe
from stages.video.errors import DecodeError
from tests.media import encode_audio, encode_video, moving_square, numbered_frames, read_numbers

N = 40
HAS_DECORD = importlib.util.find_spec("decord") is not None
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel for this platform")
DECODERS = [pytest.param("decord", marks=needs_decord), "pyav"]
ASKED = [[0], [N - 1], [N // 2], [5, 13, 14, 27], [39, 3, 3, 17, 3, 0], list(range(N))]
CLIPS = [
    *(("mp4", "libx264", gop, bframes) for gop in (1, 4, 12, 250) for bframes in (0, 2)),
    ("mov", "libx264", 12, 2),
    ("mkv", "libx264", 12, 2),
    ("webm", "libvpx-vp9", 12, 0),
    ("webm", "libvpx", 12, 0),
    ("avi", "mpeg4", 12, 0),
    ("avi", "mpeg4", 12, 2),
    ("avi", "mjpeg", 1, 0),
    ("mp4", "mpeg4", 4, 2),
]


def numbered(container="mp4", codec="libx264", gop=12, b_frames=0, n=N, **others) -> bytes:
    options = {"bf": str(b_frames)} if codec == "mpeg4" else None
    return encode_video(
        numbered_frames(n), container=container, codec=codec, gop=gop, b_frames=b_frames, options=options, **others
    )


def shifted(data: bytes, frames: int, fps: int = 8) -> bytes:
    """The same packets with their clock set back: an edit list hides the first `frames` (as cutting by copy does)."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as output:
        stream = source.streams.best("video")
        copy = output.add_stream_from_template(stream)
        back = int(frames * stream.time_base.denominator / fps)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - back, packet.dts - back, copy
                output.mux(packet)
    return file.getvalue()


def a_picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, kind)
    return file.getvalue()


def a_song_with_cover() -> bytes:
    """ID3v2.3 with an attached picture, then silence as MPEG-1 layer III frames."""
    picture = b"\0image/png\0\3\0" + a_picture("PNG")
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + (b"\xff\xfb\x90\x00" + bytes(413)) * 40


@pytest.mark.parametrize(("container", "codec", "gop", "b_frames"), CLIPS)
def test_frames_come_back_at_their_indices(container, codec, gop, b_frames):
    data = numbered(container, codec, gop, b_frames)
    info = probe(data)
    assert (info.frames, info.width, info.height, info.fps, info.duration) == (N, 96, 64, 8.0, 5.0)
    for decoder in {info.decoder, "pyav"}:
        for asked in ASKED:
            frames, served = decode_frames(data, np.array(asked), decoder)
            assert frames.shape == (len(asked), 64, 96, 3) and frames.dtype == np.uint8
            assert read_numbers(frames) == asked
            assert served == decoder


@needs_decord
@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_decord_serves_the_usual_files_and_pyav_agrees_to_the_bit(container, codec):
    data = encode_video(moving_square(20, 70, 90), container=container, codec=codec)
    info = probe(data)
    assert (info.decoder, info.fallback) == ("decord", None)
    asked = np.array([7, 0, 19, 7])
    assert np.array_equal(decode_frames(data, asked, "decord")[0], decode_frames(data, asked, "pyav")[0])


HAS_AV1 = pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="this PyAV has no encoder for AV1")


@needs_decord
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: numbered("mp4", "mpeg4", 4, 2), "open group of pictures", id="open-gop"),
        pytest.param(lambda: numbered("avi", "libx264", 12), "no times in this container", id="avi-h264"),
        pytest.param(lambda: numbered("mkv", "libsvtav1"), "cannot find video stream", id="av1", marks=HAS_AV1),
        pytest.param(lambda: encode_video(moving_square(N, 64, 48)), "size must exactly match", id="width-48"),
        pytest.param(lambda: encode_video(moving_square(N, 64, 72)), "size must exactly match", id="width-72"),
        pytest.param(lambda: shifted(numbered(b_frames=2), 7), "an edit list hides 7 packets", id="edit-list"),
    ],
)
def test_pyav_takes_over_where_decord_would_fail_or_miscount_and_the_reason_is_kept(make, reason):
    data = make()
    info = probe(data)
    assert info.decoder == "pyav-seek" and info.fallback.startswith("decord: ") and reason in info.fallback
    frames, served = decode_frames(data, np.arange(info.frames), info.decoder)
    assert served == "pyav-seek" and len(frames) == info.frames


def test_hidden_frames_are_not_counted():
    data = shifted(numbered(b_frames=2), 7)
    info = probe(data)
    assert info.frames == N - 7
    assert read_numbers(decode_frames(data, np.array([0, 4, info.frames - 1]), info.decoder)[0]) == [7, 11, N - 1]


@needs_decord
def test_a_decoder_that_fails_after_all_is_replaced_and_named():
    data = encode_video(moving_square(10, 64, 48))
    frames, served = decode_frames(data, np.array([9, 2]), "decord")
    assert served == "pyav" and frames.shape == (2, 64, 48, 3)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_variable_frame_rate_counts_frames_and_not_time(container):
    times = np.cumsum(np.arange(N) % 5 + 1).tolist()
    data = numbered(container, pts=times)
    info = probe(data)
    assert info.frames == N
    assert info.duration == pytest.approx((times[-1] - times[0]) / 8, abs=1.0)
    assert read_numbers(decode_frames(data, np.array(ASKED[4]), info.decoder)[0]) == ASKED[4]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_videos_come_out_upright(decoder, rotation):
    upright = moving_square(8, 64, 96)
    data = encode_video(np.rot90(upright, rotation // 90, axes=(1, 2)), rotation=rotation)
    info = probe(data)
    assert (info.width, info.height) == (96, 64)
    frames, served = decode_frames(data, np.arange(8), decoder)
    assert served == decoder and frames.flags.c_contiguous
    assert np.abs(frames.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("asked", [[N], [0, 3, 1000], [-1], []])
def test_an_index_that_is_not_there_is_an_error(decoder, asked):
    with pytest.raises(DecodeError, match=rf"{N} frames" if asked and min(asked) >= 0 else "expected"):
        decode_frames(numbered(), np.array(asked), decoder)


def test_odd_sizes_and_single_frames():
    data = encode_video(moving_square(1, 34, 22))
    assert probe(data).frames == 1
    assert decode_frames(data, np.array([0, 0]), "pyav")[0].shape == (2, 34, 22, 3)


BAD = {
    "zero bytes": b"",
    "garbage": np.random.default_rng(0).bytes(20_000),
    "zeros": bytes(5_000),
    "text": b"a line of text\n" * 100,
    "png": a_picture("PNG"),
    "jpeg": a_picture("JPEG"),
    "audio mp4": encode_audio(),
    "audio mkv": encode_audio(container="matroska"),
    "song with cover": a_song_with_cover(),
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nelsewhere.mp4\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile elsewhere.mp4\n",
    "cut mp4": numbered()[:2000],
    "cut avi": numbered("avi", "mpeg4")[:9000],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_whole_video_is_refused_quietly_and_with_the_same_words_each_time(data, capfd):
    reasons = []
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"unreadable video: .{10,}") as error:
            probe(data)
        reasons.append(str(error.value))
    assert reasons[0] == reasons[1] and "0x" not in reasons[0]
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_names_both_decoders():
    data = bytearray(numbered(gop=250))
    middle = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    data[middle : middle + 300] = bytes(300)
    with pytest.raises(DecodeError, match=r"decord: .+PyAV: "):
        probe(bytes(data))
    if HAS_DECORD:
        with pytest.raises(DecodeError, match=r"decord: .+PyAV: "):
            decode_frames(bytes(data), np.array([0, N - 1]), "decord")


SMALL = [
    encode_video(moving_square(12, 32, 64), gop=6, b_frames=2),
    encode_video(moving_square(12, 32, 64), container="mkv", gop=6),
    encode_video(moving_square(12, 32, 64), container="webm", codec="libvpx-vp9"),
    encode_video(moving_square(12, 32, 64), container="avi", codec="mpeg4"),
]


@settings(max_examples=25, deadline=timedelta(seconds=20))
@given(
    data=st.sampled_from(SMALL),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
)
def test_damaged_files_give_frames_or_an_error(data, keep, flips):
    damaged = bytearray(data[: round(keep * len(data))])
    for place, bit in flips if damaged else ():
        damaged[int(place * len(damaged))] ^= 1 << bit
    try:
        info = probe(bytes(damaged))
        frames, _ = decode_frames(bytes(damaged), np.array([0, info.frames // 2, info.frames - 1]), info.decoder)
    except DecodeError:
        return
    assert isinstance(info, VideoInfo) and frames.shape == (3, info.height, info.width, 3)


@needs_decord
def test_a_file_whose_header_points_beyond_its_end_does_not_take_the_process_with_it():
    """decord copies whatever lies behind the bytes it was given; given a file instead, it can't."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from stages.video.decode import decode_frames, probe\n"
        "from tests.media import encode_video, numbered_frames\n"
        "data = encode_video(numbered_frames(200), container='avi', codec='mpeg4', gop=200)\n"
        "for size in range(5000, len(data), 500):\n"
        "    for work in (probe, lambda data: decode_frames(data, [0], 'decord')):\n"
        "        try: work(data[:size])\n"
        "        except ValueError: pass\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "alive\n", done.stderr[-500:]


def test_without_decord_pyav_serves_and_says_so(monkeypatch):
    monkeypatch.setattr(decord_decode, "decord", None)
    info = probe(numbered())
    assert (info.decoder, info.fallback) == ("pyav-seek", "decord: it is not installed")
    assert decoder_identity() == f"pyav {av.__version__}"
    assert decode_frames(numbered(), np.array([3]), "decord")[1] == "pyav"


@needs_decord
def test_the_identity_names_decord_and_its_version():
    assert decoder_identity() == f"decord {decord_decode.decord.__version__}"


def test_decoding_needs_no_torch_and_leaves_no_descriptor_open():
    code = "import sys, stages.video.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    if os.path.isdir("/proc/self/fd"):
        data, _ = numbered(), probe(numbered())
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            decode_frames(data, np.array([3]), "decord")
            with pytest.raises(DecodeError):
                decode_frames(data, np.array([N]), "decord")
        assert len(os.listdir("/proc/self/fd")) == before
