"""Tars and lists of shards that reach outside, name devices, run commands, or claim more than a disk holds."""

import gzip
import json
import os
import struct
import tarfile
from pathlib import Path

import pytest

from cache.errors import ReskdError
from stages.shards.dataset import open_dataset
from stages.shards.stream_shard import stream_shard
from tests.hostile.attempts import accepted, files, little_memory, refused
from tests.media import encode_video, moving_square

VIDEO = encode_video(moving_square(4, 32, 32))


def member(name: str, data: bytes = VIDEO, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    """A header and its data, as GNU tar writes them."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def claimed(name: str, size: int, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> bytes:
    """A header that claims a size, without the data."""
    return member(name, b"", kind, size=size) + data


def pax(**records: str) -> bytes:
    """A pax header with these records, for the next member."""
    lines = []
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n"
        length = len(body) + len(str(len(body) + 2))
        lines.append(f"{length}{body}")
    return member("pax", "".join(lines).encode(), tarfile.XHDTYPE)


def old_sparse(real_size: int) -> bytes:
    """A GNU sparse member of one byte of data and any real size; its map says that it goes on, where the file ends."""
    header = bytearray(member("k.mp4", b"", tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"00000000000\x0000000000001\x00"
    header[482], header[483:495] = 1, b"\x80" + struct.pack(">3xQ", real_size)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


LONG = b"L"
TARS = {
    "absolute": (tar(member("/etc/k.mp4")), "'/etc/k.mp4' leads out of the folder"),
    "parent": (tar(member("../../k.mp4")), "leads out of the folder"),
    "parent inside": (tar(member("a/../../k.mp4")), "leads out of the folder"),
    "symlink": (tar(member("k.mp4", b"", tarfile.SYMTYPE, linkname="/etc/passwd")), "'k.mp4' is a link"),
    "hard link": (tar(member("k.mp4", b"", tarfile.LNKTYPE, linkname="/etc/passwd")), "'k.mp4' is a link"),
    "character device": (tar(member("k.mp4", b"", tarfile.CHRTYPE, devmajor=1, devminor=5)), "is a special file"),
    "block device": (tar(member("k.mp4", b"", tarfile.BLKTYPE)), "is a special file"),
    "pipe": (tar(member("k.mp4", b"", tarfile.FIFOTYPE)), "is a special file"),
    "sparse, pax": (tar(pax(GNU__sparse__size=str(2**50), GNU__sparse__map="0,1"), member("k.mp4")), "is a sparse file"),
    "sparse, old, without an end": (old_sparse(2**60), "damaged"),
    "size of a pax header": (tar(claimed("p", 2**40, tarfile.XHDTYPE)), "a header of 1099511627776 bytes"),
    "size of a global header": (tar(claimed("p", 2**60, tarfile.XGLTYPE)), "a header of"),
    "size of a long name": (tar(claimed("L", 2**62, LONG)), "a header of"),
    "negative size of a long name": (tar(claimed("L", -1024, LONG)), "a header of"),
    "long header of digits": (tar(member("p", b"1" * (1 << 20), tarfile.XHDTYPE), member("k.mp4")), "a header of"),
    "size of a member": (tar(claimed("k.mp4", 2**62)), "cut inside the data"),
    "size by a pax header": (tar(pax(size=str(2**62)), member("k.mp4")), "cut inside the data"),
    "negative size": (tar(claimed("k.mp4", -512), member("l.mp4")), "cut inside the data"),
    "negative size by a pax header": (tar(pax(size="-1024"), member("k.mp4")), "tar"),
    "names of names of names": (tar(*(member("L", b"k.mp4\0", LONG) for _ in range(3000))), "damaged"),
    "gzip": (gzip.compress(tar(member("k.mp4", bytes(1 << 24)))), "not a tar"),
}  # fmt: skip


@pytest.mark.parametrize("content, message", TARS.values(), ids=TARS)
def test_a_hostile_tar_is_refused_before_work_by_name(tmp_path, content, message):
    folder = tmp_path / "in" / "tars"
    folder.mkdir(parents=True)
    (folder / "0.tar").write_bytes(content)
    said = refused("prepare", folder, "--output", tmp_path / "out", "--set", "workers=0").replace("\n", " ")
    assert message in said and "0.tar" in said
    assert files(tmp_path) == {"in", "in/tars", "in/tars/0.tar"}


def exchanged(prepared: Path, folder: Path, content: bytes) -> Path:
    """The data set with another tar, whose size the index has."""
    folder.mkdir()
    for name in ("index.json", "000000.tar.rows.json"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    index = json.loads((folder / "index.json").read_bytes())
    del index["sha256"]  # as in older data sets; an attacker would make it fit
    tail = max(0, index["shards"][0]["bytes"] - len(content))
    (folder / "000000.tar").write_bytes(content + bytes(tail))
    index["shards"][0]["bytes"] = len(content) + tail
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(tar(member("k.mp4", bytes(1 << 20)))),
        tar(pax(GNU__sparse__size=str(2**45), GNU__sparse__realsize=str(2**45), GNU__sparse__map="0,1"), member("k.mp4")),
        tar(claimed("L", 2**62, LONG)),
        tar(member("k.mp4", b"", tarfile.SYMTYPE, linkname="/etc/passwd")),
    ],
    ids=["compressed", "sparse", "long name", "link"],
)  # fmt: skip
def test_a_prepared_data_set_whose_tar_is_a_bomb_is_not_streamed(prepared, tmp_path, content):
    data = open_dataset(exchanged(prepared, tmp_path / "data", content))
    with little_memory(), pytest.raises(ReskdError, match=r"000000\.tar"):
        list(stream_shard(data, "000000.tar"))


NAMES = ["../data/x.tar", "/etc/x.tar", "a/../../x.tar", "", ".", "..", "a//b.tar", ".hidden.tar", "classifier/x.tar",
         "a\\..\\x.tar", "zarr.json"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_that_leads_elsewhere_is_refused(prepared, tmp_path, name):
    folder = exchanged(prepared, tmp_path / "data", b"")
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"][0]["name"] = name
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ReskdError, match="can't be used"):
        open_dataset(folder)


def test_a_shard_whose_name_is_a_command_is_a_file_to_every_command(tmp_path, monkeypatch):
    """WebDataset runs `pipe:` names, and rewrites names by GOPEN_REWRITE."""
    monkeypatch.setenv("GOPEN_REWRITE", f"pipe=pipe:touch {tmp_path}/rewritten #")
    monkeypatch.setenv("GOPEN_VERBOSE", "1")
    (tmp_path / "tars").mkdir()
    name = "pipe:touch ran; #.tar"
    (tmp_path / "tars" / name).write_bytes(tar(member("k.mp4"), member("k.cls", b"3")))
    accepted("prepare", tmp_path / "tars", "--output", tmp_path / "out", "--set", "workers=0")
    before = files(tmp_path)
    assert [row.key for _, row, _ in stream_shard(open_dataset(tmp_path / "out"), name)] == ["k"]
    assert files(tmp_path) == before and not os.path.exists("ran")
    import webdataset

    for url in ("pipe:touch ran", f"{tmp_path}/tars/{name}"):
        with pytest.raises(ValueError, match="unsafe|WDS_SECURE"):
            webdataset.gopen(url)
    assert not os.path.exists("ran")


def test_paths_in_a_csv_are_read_and_never_written(tmp_path):
    """A CSV may name any video that its reader may read; the keys, and all that is written, stay in the output."""
    (tmp_path / "in/deep").mkdir(parents=True)
    for place in ("in/deep/a.mp4", "in/b.mp4", "c.mp4"):
        (tmp_path / place).write_bytes(encode_video(moving_square(4, 32, 32, seed=len(place))))
    lines = ["a.mp4,../../x", f"../b.mp4,{tmp_path}/y", f"{tmp_path}/c.mp4,$(touch z)"]
    (tmp_path / "in/deep/list.csv").write_text("\n".join(lines))
    before = files(tmp_path)
    accepted("prepare", tmp_path / "in/deep/list.csv", "--output", tmp_path / "out", "--set", "workers=0")
    assert {name.split("/")[0] for name in files(tmp_path) - before} == {"out"}
    data = open_dataset(tmp_path / "out")
    assert set(data.classes) == {"../../x", f"{tmp_path}/y", "$(touch z)"}
    with tarfile.open(tmp_path / "out/000000.tar") as packed:
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
                   for name in packed.getnames())  # fmt: skip


def test_a_pipe_in_place_of_a_tar_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "clips.tar")
    said = refused("prepare", tmp_path, "--output", tmp_path / "out", "--set", "workers=0")
    assert "no regular file" in said
