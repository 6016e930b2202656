"""Decoding processes: what they send arrives as it is, and no clip, no killed process and no full /dev/shm stops them."""

import ctypes
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.demo.digits import make_digits
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.shards.stream_shard import stream_shard
from stages.stream import worker_pool
from stages.stream.all_views import AllViews, ShardWork
from stages.stream.clips import ClipDataset, decode_row
from stages.stream.config import LoaderConfig
from stages.stream.memory_file import receive_value, send_value
from stages.stream.read_ahead import read_ahead
from stages.stream.worker_pool import make_batches
from stages.video.errors import DecodeError

POLICY = ViewPolicy(num_frames=2, crop="center", flip=0.0)
BAD = 7  # the row that goes wrong
SHARD = "000000.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workers")
    make_digits(root / "videos", clips={"train": 20})
    prepare(root / "videos" / "train", root / "data", clips_per_shard=20, workers=0)
    return root / "data"


@pytest.fixture(scope="module")
def clean(folder) -> list:
    """The batches of two epochs, made without processes."""
    return batches_of(folder, loader(0), epochs=2)


@pytest.fixture(scope="module")
def masked(folder) -> list:
    """The same, where the bad row can't be decoded."""
    return batches_of(folder, loader(0), partial(only_bad, raise_error), epochs=2)


def loader(workers: int = 2, seconds: float = 0.25, size: int = 10**8, prefetch: int = 2) -> LoaderConfig:
    return LoaderConfig(workers=workers, prefetch=prefetch, limits={"seconds": seconds, "bytes": size})


def batches_of(folder: Path, config: LoaderConfig, decode=None, epochs: int = 1) -> list:
    """The batches of three rows, in order."""
    data = open_dataset(folder)
    clips = ClipDataset(data, size=16, num_classes=40, policy=POLICY, decode=decode)
    items = [[(0, r, 0) for r in range(i, min(i + 3, 20))] for i in range(0, 20, 3)] * epochs
    return list(make_batches(clips.fetcher, items, config.workers, config, data=data))


def assert_equal(found: list, wanted: list) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        for name in ("clips", "labels", "multi_hot", "usable", "index"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert [line.split(":")[0] for line in a.failures] == [line.split(":")[0] for line in b.failures]


def only_bad(fault, data, shard, r, frames):
    """Decodes a row, after `fault` if it is the bad one."""
    if r == BAD:
        fault()
    return decode_row(data, shard, r, frames)


def raise_error():
    raise DecodeError("damaged")


def allocate():
    np.ones(2 * 10**9 // 8)


def allocate_in_small_parts():
    parts = []
    while True:
        parts.append(np.empty(10**6, np.uint8))  # to touch it would take long on a busy machine


FAULTS = {
    "sleeps": (partial(time.sleep, 1000), "takes more than 2.5 s (loader.limits)"),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "ends the process that decodes it (SIGKILL)"),
    "aborts": (os.abort, "ends the process that decodes it (SIGABRT)"),
    "reads address 0": (lambda: ctypes.string_at(0), "ends the process that decodes it (SIGSEGV)"),
    "exits": (lambda: os._exit(3), "ends the process that decodes it (exit status 3)"),
    "needs memory": (allocate, "needs more than 1 GB of memory (loader.limits)"),
    "needs ever more memory": (allocate_in_small_parts, "needs more than 1 GB of memory (loader.limits)"),
    "ignores the timer": (lambda: (signal.signal(signal.SIGALRM, signal.SIG_IGN), time.sleep(1000)),
                       "doesn't answer for 2.5 s (loader.limits)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_clip_that_fails_twice_is_masked_as_if_it_could_not_be_decoded(folder, masked, fault, monkeypatch, capfd):
    monkeypatch.setattr(worker_pool, "GRACE", 0.3)
    monkeypatch.setattr(worker_pool, "POLL", 0.1)
    do, reason = FAULTS[fault]
    found = batches_of(folder, loader(), partial(only_bad, do), epochs=2)
    assert_equal(found, masked)
    key = open_dataset(folder).rows(SHARD)[BAD].key
    lines = [line for batch in found for line in batch.failures]
    assert len(lines) == 2 and set(lines) == {lines[0]} and lines[0].startswith(f"{SHARD}/{key}: {reason}")
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("it is tried once more, with 10 times the limits") == 1 and f"again {SHARD}/{key}: " in said


def test_a_slow_clip_gets_ten_times_the_time_and_is_served(folder, clean):
    found = batches_of(folder, loader(), partial(only_bad, partial(time.sleep, 0.5)))
    assert_equal(found, clean[: len(found)])
    assert len(found) == 7
    assert not any(batch.failures for batch in found)


def test_a_good_clip_of_another_epoch_is_decoded_after_a_random_death(folder, clean, tmp_path):
    mark = tmp_path / "died"

    def once():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert_equal(batches_of(folder, loader(), partial(only_bad, once), 2), clean)
    assert mark.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_workers_that_are_killed_or_stopped_at_random_change_nothing(folder, number, monkeypatch):
    monkeypatch.setattr(worker_pool, "GRACE", 0.2)
    monkeypatch.setattr(worker_pool, "POLL", 0.1)
    config, found = loader(workers=3, seconds=0.05 if number == signal.SIGSTOP else 5.0, prefetch=1), []
    data = open_dataset(folder)
    clips = ClipDataset(data, size=16, num_classes=40, policy=POLICY)
    once, epochs = [[(0, r, 0), (0, r + 1, 0)] for r in range(0, 18)], 2 if number == signal.SIGSTOP else 3
    before = {child.pid for child in psutil.Process().children()}
    for i, batch in enumerate(make_batches(clips.fetcher, once * epochs, 3, config, data=data)):
        found.append(batch)
        if i % 9 == 1:
            workers = [child for child in psutil.Process().children() if child.pid not in before]
            workers[i % len(workers)].send_signal(number)
    assert_equal(found, [clips.__getitems__(item) for item in once] * epochs)
    assert not [child for child in psutil.Process().children() if child.pid not in before]


def test_views_of_all_clips_and_their_quarantine_do_not_depend_on_a_clip_that_kills(folder, monkeypatch):
    work = [ShardWork(SHARD, range(2)), ShardWork(SHARD, range(2, 3))]

    def views(do, config):
        def decode(video, frames, decoder):
            if video == bad:
                do()
            return real(video, frames, decoder)

        data = open_dataset(folder)
        bad = data.read(SHARD, BAD)
        monkeypatch.setattr("stages.stream.all_views.decode_frames", decode)
        all_views = AllViews(data, work, POLICY, 16, 3)
        return list(make_batches(all_views.fetcher, read_ahead(all_views.read()), config.workers, config, data=data))

    from stages.stream.all_views import decode_frames as real

    found, wanted = views(os.abort, loader(3)), views(raise_error, loader(0))
    assert len(found) == len(wanted) == 14
    for a, b in zip(found, wanted, strict=True):
        assert (a.work, a.start, a.quarantine.keys()) == (b.work, b.start, b.quarantine.keys())
        assert torch.equal(a.clips, b.clips) and np.array_equal(a.frames, b.frames) and np.array_equal(a.box, b.box)
    assert [len(batch.quarantine) for batch in found] == [0, 0, 1, 0, 0, 0, 0] * 2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_tar_is_read_once_whatever_the_workers(folder, tmp_path, workers):
    """Counted by the system: what this process and its decoding processes read from files and pipes."""
    (tmp_path / "videos").mkdir()
    for i in range(8):  # of a size that stands out
        shutil.copy(next((folder.parent / "videos").rglob("*.mp4")), tmp_path / "videos" / f"{i}.mp4")
        with open(tmp_path / "videos" / f"{i}.mp4", "ab") as video:  # a box that players skip
            video.write(struct.pack(">I4s", 2**21, b"free") + bytes([i]) * (2**21 - 8))
    data = prepare(tmp_path / "videos", tmp_path / "data", clips_per_shard=8, workers=0)
    work, counts = [ShardWork(entry.name, range(1)) for entry in data.shards], []

    def fetcher(first, step):
        make = views.fetcher(first, step)
        return lambda clips: (make(clips), read_so_far())

    views = AllViews(data, work, POLICY, 16, 2)
    next(stream_shard(data, SHARD))  # imports are files, too
    before = read_so_far()
    for _, count in make_batches(fetcher, read_ahead(views.read()), workers, loader(seconds=60), data=data):
        counts.append(count)
    size = sum(entry.bytes for entry in data.shards)
    here = read_so_far() - before
    assert len(counts) == 4 and 1.0 <= here / size < 1.1  # this process reads the tar
    assert max(counts) < 0.1 * size  # and no other: a child's count begins at 0


def read_so_far() -> int:
    """Bytes that this process has read, as the system counts them."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


class Made:
    """`begin` of a pool whose batches are the answers of a function."""

    def __init__(self, make):
        self.make = make

    def __call__(self, first, step):
        return self.make


def made(make, items=range(4), data=None, **config) -> list:
    loader_config = loader(**config)
    return list(make_batches(Made(make), items, loader_config.workers, loader_config, data=data or Made(None)))


def test_a_batch_that_cannot_be_sent_is_an_error_and_no_endless_wait():
    with pytest.raises(RuntimeError, match="pickle"):
        made(lambda item: threading.Lock())

    def without_memory(item):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as a file system that is full
        return torch.zeros(10**6)

    with pytest.raises(
        ReskdError, match=r"can't send its batch .*File too large.*: lower loader.workers or loader.pref"
    ):
        for batch in made(without_memory):
            raise batch


def test_a_process_that_ends_outside_of_a_clip_is_replaced_once_for_each_batch(tmp_path):
    def once_each(item):
        if not (mark := tmp_path / str(item)).exists():
            mark.touch()
            os.abort()
        return item

    assert made(once_each) == [0, 1, 2, 3]
    with pytest.raises(
        ReskdError, match=r"two decoding processes failed .* the last one .*SIGABRT.* Lower loader.workers"
    ):
        made(lambda item: os.abort())


def test_the_memory_that_batches_need_is_compared_with_what_is_free():
    free = psutil.virtual_memory().available
    batches = make_batches(
        Made(lambda item: torch.zeros(10**7)), range(10), 2, loader(prefetch=free // 10**7), data=Made(0)
    )
    with pytest.raises(
        ReskdError, match=r"needs .* GB .*\(2 workers × \d+ batches × 40 MB\).* lower loader.workers, loader.p"
    ):
        next(batches)
    assert len(made(lambda item: torch.zeros(10**7))) == 4


def test_batches_need_no_room_in_dev_shm():
    """In a mount namespace of its own, with 64 KB for /dev/shm: batches of 4 MB arrive."""
    libc, said = ctypes.CDLL(None, use_errno=True), multiprocessing.Pipe()
    if not (child := os.fork()):
        status = 1
        try:
            namespaces = 0x00020000 | (0 if os.geteuid() == 0 else 0x10000000)  # mounts; users
            if (
                libc.unshare(namespaces)
                or libc.mount(b"none", b"/", None, 0x44000, None)
                or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k")
            ):  # private, recursive
                status = 77
            else:
                assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 65536
                sums = [int(batch.sum()) for batch in made(lambda item: torch.full((10**6,), item, dtype=torch.int32))]
                said[1].send(sums)
                status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 77:
        pytest.skip("no mount namespace here")
    assert status == 0 and said[0].recv() == [0, 10**6, 2 * 10**6, 3 * 10**6]


def test_too_few_open_files_are_an_error_and_no_endless_wait():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    batches = make_batches(Made(lambda item: torch.zeros(99)), range(200), 2, loader(prefetch=50), data=Made(0))
    held = [next(batches)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, hard))
    try:
        with pytest.raises(ReskdError, match=r"can't be received .*Too many open files.*ulimit -n"):
            for batch in batches:
                if isinstance(batch, ReskdError):
                    raise batch
                held.append(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(held) < 200


def test_workers_end_soon_after_their_parent_was_killed():
    here, there = multiprocessing.Pipe()
    if not (child := os.fork()):
        batches = make_batches(Made(lambda item: os.getpid()), iter(int, 1), 2, loader(), data=Made(0))
        there.send([next(batches), next(batches)])
        time.sleep(100)
    pids = here.recv()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    end = time.monotonic() + 5
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


@given(st.lists(st.tuples(st.sampled_from(["float32", "float16", "bfloat16", "int64", "uint8", "bool"]),
                          st.lists(st.integers(0, 4), max_size=4)), max_size=4), st.binary(max_size=200), st.data())  # fmt: skip
def test_values_arrive_as_they_were_sent(tensors, raw, draw):
    sent = []
    for dtype, shape in tensors:
        whole = torch.randn(shape).mul(3).to(getattr(torch, dtype))
        axes = draw.draw(st.permutations(range(len(shape))))
        sent += [whole, whole.permute(axes), whole.numpy() if dtype != "bfloat16" else None]
    value = {"tensors": sent, "bytes": raw, "error": ReskdError("no")}
    here, there = multiprocessing.Pipe()
    send_value(there, value)
    found, size = receive_value(here)
    assert found["bytes"] == raw and str(found["error"]) == "no" and size % 64 == 0
    for a, b in zip(found["tensors"], sent, strict=True):
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
        else:
            assert (a is None and b is None) or (np.array_equal(a, b) and a.dtype == b.dtype)
    assert pickle.dumps(found["bytes"]) == pickle.dumps(raw)
