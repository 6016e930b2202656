"""The data set on disk: what is written comes back by index and by stream, and no damage to a tar goes unnoticed."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.identity import ShardEntry, keys_digest
from stages.shards.dataset import Dataset, open_dataset
from stages.shards.index import INDEX, make_index, write_index, write_rows
from stages.shards.stream_shard import stream_shard
from stages.shards.tar_scan import scan_tar
from stages.shards.webdataset_tar import write_shard


def video(i: int) -> bytes:
    return np.random.default_rng(i).bytes(700 + 37 * i)


def make_shard(folder: Path, name: str, keys: list[str], error_rows: tuple[int, ...] = ()) -> tuple[ShardEntry, str]:
    """A tar of bytes that nobody decodes, and its rows."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = [(key, "mp4", video(i), {"labels": [i % 3]}) for i, key in enumerate(keys)]
    samples, size, digest = write_shard(path, folder / "temporary", clips)
    rows = []
    for i, sample in enumerate(samples):
        bad = i in error_rows
        rows.append({
            "key": sample.key, "ext": sample.ext, "sha256": hashlib.sha256(video(i)).hexdigest(),
            "offset": sample.video.offset, "size": sample.video.size, "header": sample.video.header,
            "frames": 8, "fps": 8.0, "width": 48, "height": 32, "duration": 1.0, "labels": [i % 3], "decoder": "pyav",
            "start": 0, "fallback": None, "error": "damaged" if bad else None,
        })  # fmt: skip
    return ShardEntry(name, len(keys), size, digest, keys_digest(keys)), write_rows(folder, name, rows)


def make_dataset(folder: Path, shards: int = 2, clips: int = 5) -> Dataset:
    entries = [
        make_shard(folder, f"a/{s:03d}.tar", [f"clip{s}-{i}" for i in range(clips)], (1,) if s == 0 else ())
        for s in range(shards)
    ]
    write_index(folder, make_index(classes=["x", "y", "z"], decoder="pyav 1", base=".", shards=entries,
                                   quarantine={"a/000.tar": {1: "damaged"}} if clips > 1 else {}, rules=2,
                                   check="quick"))  # fmt: skip
    return open_dataset(folder)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return make_dataset(tmp_path)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"data", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, link
    tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)


def make_tar(path: Path, *members: str | tuple, **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            add(tar, *(member if isinstance(member, tuple) else (member,)))
    return path


# What is written comes back


def test_rows_by_index_equal_the_stream_and_what_was_written(dataset):
    assert dataset.classes == ("x", "y", "z")
    assert [entry.clips for entry in dataset.shards] == [5, 5]
    for entry in dataset.shards:
        streamed = list(stream_shard(dataset, entry.name))
        assert [number for number, _, _ in streamed] == [0, 1, 2, 3, 4]
        assert tuple(row for _, row, _ in streamed) == dataset.rows(entry.name)
        for number, row, data in streamed:
            assert data == dataset.read(entry.name, number) == video(number)
            assert row.labels == (number % 3,) and row.aspect == 1.5 and row.frames == 8


def test_quarantined_rows_are_known_without_reading_rows(dataset):
    for entry in dataset.shards:
        os.unlink(dataset.path / f"{entry.name}.rows.json")
    assert [rows.tolist() for rows in open_dataset(dataset.path).usable_rows()] == [[0, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_the_same_clips_give_the_same_bytes_and_webdataset_needs_no_help_to_read_them(tmp_path):
    import webdataset

    for name in ("one.tar", "two.tar"):
        make_shard(tmp_path, name, ["k1", "k2"])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with open(tmp_path / "one.tar", "rb") as file:
        samples = list(webdataset.DataPipeline([[{"url": "one", "stream": file}]],
                                               webdataset.tariterators.tar_file_expander,
                                               webdataset.tariterators.group_by_keys))  # fmt: skip
    assert [(s["__key__"], s["mp4"], json.loads(s["json"])) for s in samples] == [
        ("k1", video(0), {"labels": [0]}),
        ("k2", video(1), {"labels": [1]}),
    ]


def test_no_clips_no_tar(tmp_path):
    assert write_shard(tmp_path / "a.tar", tmp_path / "temporary", []) == ([], 0, "")
    assert list(tmp_path.iterdir()) == []


def test_streaming_runs_no_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "a=pipe:touch rewritten #")
    name = "pipe:touch ran #.tar"
    entry = make_shard(tmp_path, name, ["k"])
    write_index(tmp_path, make_index(classes=[], decoder="pyav 1", base=".", shards=[entry], quarantine={}, rules=2,
                                     check="quick"))  # fmt: skip
    assert [data for _, _, data in stream_shard(open_dataset(tmp_path), name)] == [video(0)]
    assert not (tmp_path / "ran").exists() and not (tmp_path / "rewritten").exists()
    import webdataset

    with pytest.raises(ValueError, match="unsafe"):
        webdataset.gopen("pipe:touch ran")


# Processes and threads


def read_all(dataset: Dataset) -> list[bytes]:
    return [dataset.read(entry.name, row) for entry in dataset.shards for row in range(entry.clips)]


def _answer(dataset: Dataset, queue) -> None:
    queue.put(read_all(dataset))


@pytest.mark.parametrize("method", ["fork", "forkserver"])  # to the latter, all is pickled, as to a spawned one
def test_every_kind_of_worker_reads_the_same(dataset, method):
    before = read_all(dataset)  # tars are open, rows are loaded
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_answer, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == before
    process.join()


def test_threads_share_a_data_set_while_shards_are_closed_and_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.shards.dataset.OPEN_SHARDS", 2)
    dataset = make_dataset(tmp_path, shards=6)
    wanted = read_all(open_dataset(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        assert all(found == wanted for found in pool.map(lambda _: read_all(dataset), range(32)))


def test_open_files_are_bounded_however_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.shards.dataset.OPEN_SHARDS", 4)
    dataset = make_dataset(tmp_path, shards=20, clips=1)
    before = len(os.listdir("/proc/self/fd"))
    read_all(dataset)
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_ten_thousand_shards_are_opened_and_pickled_without_touching_one(tmp_path):
    shards = [(ShardEntry(f"{i:05d}.tar", 1000, 1, "0" * 64, "0" * 64), "0" * 64) for i in range(10_000)]
    write_index(tmp_path, make_index(classes=["x"], decoder="pyav 1", base=".", shards=shards, quarantine={}, rules=2,
                                     check="quick"))  # fmt: skip
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path)))
    assert len(dataset.shards) == 10_000 and sum(map(len, dataset.usable_rows())) == 10_000_000


# Damage: by scan, by reading, by streaming


def end_of(tar: Path) -> int:
    """Where the two zero blocks that end a tar begin: the padding after them may be cut without loss."""
    with tarfile.open(tar) as file:
        file.getmembers()
        return file.offset


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, bytes]:
    """A data set of one tar, and the bytes of that tar, to be damaged."""
    dataset = make_dataset(tmp_path_factory.mktemp("whole"), shards=1)
    return dataset.path, (dataset.base / "a/000.tar").read_bytes()


@settings(deadline=None, max_examples=400)
@given(cut=st.integers(0, 10_239), at_block=st.booleans())
def test_a_tar_cut_anywhere_is_refused(cut, at_block, whole):
    path, data = whole
    cut = cut // 512 * 512 if at_block else cut
    assert cut < len(data)
    tar = path / "a/000.tar"
    tar.write_bytes(data)
    end = end_of(tar) + 1024
    tar.write_bytes(data[:cut])
    if cut >= end and cut % 512 == 0:
        assert (
            len(scan_tar(tar).samples) == 5
        )  # cut in the padding after its end: nothing is lost, and a tar alone can't know
    else:
        with pytest.raises(ReskdError, match=r"000\.tar: .*(write it anew)"):
            scan_tar(tar)
    dataset = open_dataset(path)
    for use in (
        lambda: dataset.read("a/000.tar", 0),
        lambda: next(stream_shard(dataset, "a/000.tar")),
        dataset.check_files,
    ):
        with pytest.raises(ReskdError, match=rf"000\.tar: {cut} bytes, the index has {len(data)}"):
            use()


def test_a_cut_at_each_member_boundary_is_refused(dataset):
    tar = dataset.base / dataset.shards[0].name
    data = tar.read_bytes()
    with tarfile.open(tar) as file:
        boundaries = [member.offset for member in file] + [file.offset, file.offset + 512]
    assert len(boundaries) == 12
    for boundary in boundaries:
        tar.write_bytes(data[:boundary])
        with pytest.raises(ReskdError, match="empty file" if boundary == 0 else "cut after member|cut at its start"):
            scan_tar(tar)


LONG = "k" * 180
OFFENDERS = {
    "symlink": (["k.mp4", ("l.mp4", b"", tarfile.SYMTYPE, "k.mp4")], "'l.mp4' is a link"),
    "hard link": (["k.mp4", ("l.mp4", b"", tarfile.LNKTYPE, "k.mp4")], "'l.mp4' is a link"),
    "fifo": (["k.mp4", ("f.mp4", b"", tarfile.FIFOTYPE)], "'f.mp4' is a special file"),
    "same member twice": (["k.mp4", "k.mp4"], "'k.mp4' occurs twice"),
    "same in capitals": (["k.mp4", "k.MP4"], "'k.MP4' occurs twice"),
    "key again, not adjacent": (["k.mp4", "l.mp4", "k.json"], "'k.json': key 'k' occurs again"),
    "whole clip again": (["k.json", "k.mp4", "l.mp4", "k.json", "k.mp4"], "key 'k' occurs again"),
    "dotted stem": (["a.b.mp4", "a.c.mp4"], "'a' has 2 videos: 'a.b.mp4' and 'a.c.mp4'"),
    "two videos": (["k.mp4", "k.json", "k.webm"], "'k' has 2 videos: 'k.mp4' and 'k.webm'"),
    "no video": (["k.json", "README"], "no clip in it, but files such as 'README'"),
    "hidden": (["k.mp4", "._k.mp4"], "'._k.mp4': WebDataset would skip this video"),
    "metadata": (["__MACOSX__/k.mp4"], "'__MACOSX__/k.mp4': WebDataset would skip this video"),
    "nothing": ([], "empty shard"),
}


@pytest.mark.parametrize("members, message", OFFENDERS.values(), ids=OFFENDERS)
def test_offenders_are_named(tmp_path, members, message):
    with pytest.raises(ReskdError, match=message) as caught:
        scan_tar(make_tar(tmp_path / "x.tar", *members))
    assert str(tmp_path / "x.tar") in str(caught.value)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read_long_names_and_foreign_members_too(tmp_path, form):
    long = "k" * 180 if form != tarfile.USTAR_FORMAT else "k" * 90
    names = [f"./{long}.json", f"./{long}.mp4", "./l.seg.png", "./l.MKV", "dir.v1/m.webm"]
    samples = scan_tar(make_tar(tmp_path / "x.tar", *names, format=form)).samples
    assert [(s.key, s.ext, sorted(s.labels)) for s in samples] == [
        (f"./{long}", "mp4", ["json"]), ("./l", "mkv", []), ("dir.v1/m", "webm", [])]  # fmt: skip
    data = (tmp_path / "x.tar").read_bytes()
    assert all(data[s.video.offset : s.video.offset + s.video.size] == b"data" for s in samples)


def test_joined_compressed_and_foreign_files_are_no_shards(tmp_path):
    tar = make_tar(tmp_path / "x.tar", "k.mp4").read_bytes()
    cases = {"joined": tar + tar, "garbage": tar[:1024] + b"\1" * 5000 + bytes(120), "other": b"\1" * 10240}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ReskdError, match=f"{name}: "):
            scan_tar(tmp_path / name)
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as file:
        add(file, "k.mp4")
    with pytest.raises(ReskdError, match=r"zipped\.tar: .*uncompressed"):
        scan_tar(tmp_path / "zipped.tar")
    with pytest.raises(ReskdError, match=r"gone\.tar: shard can't be read"):
        scan_tar(tmp_path / "gone.tar")


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, 10_239), value=st.integers(1, 255))
def test_a_changed_byte_never_gives_a_wrong_clip(position, value, whole):
    path, data = whole
    (path / "a/000.tar").write_bytes(data[:position] + bytes([data[position] ^ value]) + data[position + 1 :])
    try:
        streamed = [video for _, _, video in stream_shard(open_dataset(path), "a/000.tar")]
    except ReskdError as error:
        assert "000.tar: " in str(error)
    else:
        assert streamed == [video(i) for i in range(5)]  # the byte was padding, or in a json


def rewrite(dataset: Dataset, change) -> str:
    """Rewrites the first tar of a data set with its (key, bytes) changed, at the size that the index has."""
    name = dataset.shards[0].name
    clips = change([(row.key, data) for _, row, data in stream_shard(dataset, name)])
    path = dataset.base / name
    write_shard(
        path, dataset.path / "temporary", [(k, "mp4", d, {"labels": [i % 3]}) for i, (k, d) in enumerate(clips)]
    )
    size = dataset.shards[0].bytes
    assert path.stat().st_size <= size
    os.truncate(path, size)
    return name


CHANGES = {
    "two rows exchanged": (lambda c: [c[1], c[0], *c[2:]], "row 0: clip 'clip0-1' lies where"),
    "another key": (lambda c: [c[0], ("other!", c[1][1]), *c[2:]], "row 1: clip 'other!' lies where"),
    "other content": (lambda c: [(c[0][0], c[0][1][::-1]), *c[1:]], "row 0, clip0-0.mp4: 700 bytes of other content"),
    "one less": (lambda c: c[:-1], "4 clips, the index has 5; the next is 'clip0-4'"),
    "one more": (lambda c: [*c, ("more", b"x")], "clip 'more' comes after the last of 5 rows"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_stream_that_differs_from_the_index_is_refused(dataset, change, message):
    name = rewrite(dataset, change)
    with pytest.raises(ReskdError, match=message):
        list(stream_shard(open_dataset(dataset.path), name))


def test_reading_by_offset_notices_another_member(dataset):
    name = rewrite(dataset, lambda c: [c[1], c[0], *c[2:]])
    with pytest.raises(ReskdError, match=r"row 0: another member lies where clip0-0\.mp4 was"):
        open_dataset(dataset.path).read(name, 0)


def test_what_is_missing_is_named(dataset, tmp_path):
    name = dataset.shards[1].name
    os.unlink(dataset.base / name)
    for use in (lambda: dataset.read(name, 0), lambda: next(stream_shard(dataset, name)), dataset.check_files):
        with pytest.raises(ReskdError, match=r"001\.tar: missing shard .*Put the tar back"):
            use()
    with pytest.raises(ReskdError, match=r"no shard 'b\.tar' in it"):
        dataset.rows("b.tar")
    rows = tmp_path / f"{name}.rows.json"
    rows.write_bytes(rows.read_bytes().replace(b"clip1-0", b"clip1-9"))
    with pytest.raises(ReskdError, match=r"rows\.json: not the rows that"):
        open_dataset(tmp_path).rows(name)


def test_an_index_of_another_format_or_none_is_refused(dataset, tmp_path):
    index = json.loads((tmp_path / INDEX).read_bytes())
    for change, message in ({"format": 1}, "format version 1, this program reads 2"), ({"shards": 3}, "damaged"):
        (tmp_path / INDEX).write_text(json.dumps(index | change))
        with pytest.raises(ReskdError, match=message):
            open_dataset(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ReskdError, match="not an index"):
        open_dataset(tmp_path)
    with pytest.raises(ReskdError, match="`prepare` makes one"):
        open_dataset(tmp_path / "elsewhere")
