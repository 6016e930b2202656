"""Videos that name other files and addresses: playlists, scripts, and external references in containers."""

import http.server
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from stages.prepare.probe_videos import probe_bytes
from stages.video.decode import DecodeError, decode_frames
from tests.hostile.attempts import refused
from tests.media import encode_video, moving_square

FRAMES = moving_square(8, 32, 32)


class Counting(http.server.BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def secret(tmp_path) -> Path:
    """A video that only its owner may see; the attacks name it."""
    (tmp_path / "secret.ts").write_bytes(encode_video(FRAMES, container="mpegts"))
    (tmp_path / "secret.mp4").write_bytes(encode_video(FRAMES))
    return tmp_path


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def server(address):
    """An address that would be asked, and the paths that were asked for."""
    Counting.requests.clear()
    return address, Counting.requests


def playlists(secret: Path, address: str) -> dict[str, bytes]:
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:8,\n{}\n#EXT-X-ENDLIST\n"
    padding = encode_video(FRAMES, container="mpegts")
    texts = {
        "HLS, a file": hls.format(secret / "secret.ts"),
        "HLS, file:": hls.format(f"file://{secret}/secret.ts"),
        "HLS, an address": hls.format(f"{address}/x.ts"),
        "HLS, a key": hls.format(secret / "secret.ts").replace(
            "#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{address}/key"\n#EXTINF'
        ),
        "HLS, concat:": hls.format(f"concat:{secret}/secret.ts|{secret}/secret.ts"),
        "HLS of HLS": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{address}/other.m3u8\n",
        "concat": f"ffconcat version 1.0\nfile {secret}/secret.mp4\n",
        "concat, an address": f"ffconcat version 1.0\nfile {address}/x.mp4\n",
        "DASH": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011">'
        f"<BaseURL>{address}/</BaseURL><Period><AdaptationSet><Representation/></AdaptationSet></Period></MPD>",
        "Smooth Streaming": f'<SmoothStreamingMedia><StreamIndex Url="{address}/x"/></SmoothStreamingMedia>',
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "a list of pictures": str(secret / "img_%05d.jpg"),
        "ASX": f'<asx version="3.0"><entry><ref href="{address}/x.asf"/></entry></asx>',
        "RealMedia": f"{address}/x.rm",
        "AviSynth": f'AviSource("{secret}/secret.mp4")',
        "filter graph": f"movie={secret}/secret.mp4",
    }  # fmt: skip
    found = {name: text.encode() for name, text in texts.items()}
    return found | {f"{name}, before a video": found[name] + bytes(-len(found[name]) % 188) + padding for name in
                    ("HLS, a file", "concat", "DASH")}  # fmt: skip


@pytest.mark.parametrize("name", list(playlists(Path("/"), "")))
@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-seek"])
def test_a_playlist_opens_nothing_whatever_decoder_an_index_names(secret, server, name, decoder):
    """The index of a data set of others names the decoder, so decoding is tried without the probe before it."""
    address, requests = server
    data = playlists(secret, address)[name]
    try:
        frames, _ = decode_frames(data, np.array([0, 1]), decoder)
    except DecodeError:
        pass
    else:  # FFmpeg found the video behind the text: its own frames, and not those that the text names
        assert "before a video" in name and frames.shape == (2, 32, 32, 3)
    assert requests == []


def test_prepare_quarantines_playlists_by_any_name(secret, server):
    address, requests = server
    (secret / "videos/a").mkdir(parents=True)
    found = {name: data for name, data in playlists(secret, address).items() if "before a video" not in name}
    for i, data in enumerate(found.values()):
        (secret / f"videos/a/{i}.{('mp4', 'ts', 'mkv', 'avi')[i % 4]}").write_bytes(data)
    said = refused("prepare", secret / "videos", "--output", secret / "out", "--set", "workers=0")
    assert f"none of {len(found)} clips is readable" in said and requests == []


def with_box(data: bytes, kind: bytes, changed) -> bytes:
    """An MP4 in which the content of one box is changed, at its size."""
    start = data.index(kind) + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    content = changed(data[start : start + size])
    assert len(content) == size
    return data[:start] + content + data[start + size :]


def test_an_external_reference_of_a_movie_is_not_followed(secret, server):
    """`dref` may say that the samples lie in another file: `url ` without the flag 1, or `alis` with a path."""
    address, requests = server
    plain = encode_video(FRAMES, container="mov")
    expected, _ = decode_frames(plain, np.arange(8), "pyav")
    for entry in (b"url \0\0\0\0", b"alis\0\0\0\0", b"rsrc\0\0\0\0"):
        start = plain.index(b"dref") + 12
        data = plain[: start + 4] + entry + plain[start + 12 :]
        probe = probe_bytes(data)
        if probe.error is None:  # the samples of this very file
            frames, _ = decode_frames(data, np.arange(8), probe.info.decoder)
            assert np.array_equal(frames, expected)
    reference = b"".join(
        [(60).to_bytes(4, "big"), b"rdrf\0\0\0\0url ", (40).to_bytes(4, "big"), address.encode().ljust(40, b"\0")]
    )
    movie = (
        (len(reference) + 16).to_bytes(4, "big")
        + b"rmra"
        + (len(reference) + 8).to_bytes(4, "big")
        + b"rmda"
        + reference
    )
    assert probe_bytes((len(movie) + 8).to_bytes(4, "big") + b"moov" + movie).error is not None
    assert requests == []


def test_linked_segments_of_matroska_are_not_followed(secret):
    """NextUID and NextFilename in a segment's info ask players for the file that comes next."""
    plain = encode_video(FRAMES, container="mkv")
    expected, _ = decode_frames(plain, np.arange(8), "pyav")
    name = str(secret / "secret.mp4").encode()
    links = b"\x3e\x83\xbb" + (0x4000 | len(name)).to_bytes(2, "big") + name + b"\x3e\xb9\x23\x90" + b"1" * 16
    info = (
        b"\x15\x49\xa9\x66" + (0x4000 | (len(links) + 7)).to_bytes(2, "big") + b"\x2a\xd7\xb1\x83\x0f\x42\x40" + links
    )
    start = plain.index(b"\x18\x53\x80\x67") + 4  # the segment, whose size is made unknown: bytes are added
    probe = probe_bytes(plain[:start] + b"\x01" + b"\xff" * 7 + info + plain[start + 8 :])
    assert probe.error is None and probe.info.frames == 8
    frames, _ = decode_frames(plain[:start] + b"\x01" + b"\xff" * 7 + info + plain[start + 8 :], np.arange(8), "pyav")
    assert np.array_equal(frames, expected)
