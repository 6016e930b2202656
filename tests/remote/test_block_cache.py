"""Clips from a store through blocks in a local folder: what is fetched, what is kept, what faults do."""

import random
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import ReskdError, StoreError
from cache.view import ViewPolicy
from stages.bench.eviction import lru_bytes, optimum_bytes
from stages.config.file import load_config
from stages.remote.store import connections
from stages.remote.url_path import UrlPath
from stages.runtime.distributed import Ranks
from stages.shards.dataset import open_dataset
from stages.stream.block_plan import NOBODY, plan_blocks
from stages.stream.block_sizes import BlockSizes
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.loading import batches_in_order
from stages.stream.order import Order, batches_of_run
from tests.remote.test_remote_data import upload_folder

ALONE = Ranks(0, 1, torch.device("cpu"))
POLICY = ViewPolicy(num_frames=2, crop="center", jitter=False, flip=0.0)


# The plan


def steps_of(epochs, sizes, budget, there=()):
    return list(plan_blocks(iter(epochs), sizes.__getitem__, budget, {block: sizes[block] for block in there}))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_plan_keeps_its_budget_and_fetches_what_the_best_rule_does(seed):
    choose = random.Random(seed)
    blocks, sizes = choose.randint(4, 14), [choose.randint(5, 9) for _ in range(14)]
    same = choose.random() < 0.5
    sizes = [6] * 14 if same else sizes
    epochs = [np.array([[choose.randrange(blocks) for _ in range(3)] for _ in range(blocks * 2)]) for _ in range(4)]
    budget = choose.randint(3 * 9, 6 * blocks + 30)
    held, uses, fetched, last = set(), [set(row) for e in epochs for row in e.tolist()], 0, {}
    for step, used in zip(steps_of(epochs, sizes, budget), uses, strict=True):
        for block, last_use in step.evict:
            assert block in held and last[block] == last_use < step.number
            held.remove(block)
        assert not held & set(step.fetch)
        held |= set(step.fetch)
        assert used <= held and sum(sizes[block] for block in held) <= budget
        last |= dict.fromkeys(used, step.number)
        fetched += sum(sizes[block] for block in step.fetch)
    best = optimum_bytes(uses, sizes, budget)
    assert fetched <= best * (1.02 if same else 1.1) + 2 * max(sizes)  # it looks two epochs ahead, the other sees all
    assert fetched <= lru_bytes(uses, sizes, budget) * 1.1 + 2 * max(sizes)


@pytest.mark.parametrize("part", ["half", "working set"])
def test_in_the_order_of_training_the_plan_is_the_optimum(part):
    order = Order([np.arange(512)] * 8, list("abcdefgh"), 0, 16, 2, window=4, streams=4, views=None)
    sizes = np.random.default_rng(0).integers(50, 150, 64).tolist()
    epochs = [s * 8 + r // 64 for s, r in map(order.epoch, range(5))]
    batches = [set(row) for epoch in epochs for row in epoch.tolist()]
    budget = sum(sizes) // 2 if part == "half" else sum(sorted(sizes)[-20:])
    fetched = sum(sizes[block] for step in steps_of(epochs, sizes, budget) for block in step.fetch)
    assert fetched <= 1.02 * optimum_bytes(batches, sizes, budget)
    assert lru_bytes(batches, sizes, budget) > 1.1 * fetched


def test_what_is_there_is_used_and_what_does_not_fit_goes_first():
    epochs = [np.array([[0], [1], [2]]), np.array([[2], [1], [3]])]
    steps = steps_of(epochs, [10] * 9, 30, there=[1, 2, 7, 8])
    assert steps[0].fetch == (0,) and steps[0].evict == ((7, NOBODY), (8, NOBODY))
    assert [step.fetch for step in steps[1:]] == [(), (), (), (), (3,)]
    with pytest.raises(ReskdError, match=r"loader.local.budget: one micro-batch takes 20 bytes"):
        steps_of([np.array([[0, 1]])], [10] * 2, 15)


# Against a real server


@pytest.fixture(scope="module")
def remote(s3, data) -> UrlPath:
    folder = UrlPath(s3.bucket) / "blocks"
    upload_folder(data.train, folder)
    return folder


def sizes_there(folder: Path) -> list[int]:
    """Bytes of each block in the folder, which a thread changes meanwhile."""
    sizes = []
    for file in folder.glob("*/*.*[0-9]"):
        with suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return sizes


def clips_of(path) -> ClipDataset:
    """Every fourth clip: all blocks are read, and few clips decoded."""
    data = open_dataset(path)
    data = data.with_quarantine(
        {e.name: dict.fromkeys(set(range(e.clips)) - {*range(0, e.clips, 4)}, "") for e in data.shards}
    )
    return ClipDataset(data, size=16, num_classes=len(data.classes), policy=POLICY)


def order_of(clips: ClipDataset, **changes) -> Order:
    rows, names = clips.data.usable_rows(), [entry.name for entry in clips.data.shards]
    return replace(Order(rows, names, 0, 2, 1, window=1, streams=1, views=None), **changes)


def loader(folder: Path, budget: str = "100MB", workers: int = 0) -> LoaderConfig:
    return load_config(LoaderConfig, None, [f"local.path={folder}", f"local.budget={budget}", f"workers={workers}"])


def train(clips, loader, epochs=2, start=(0, 0), ranks=ALONE):
    return batches_of_run(clips, order_of(clips), epochs, start, loader, ranks)


def tar_requests(proxy) -> list:
    return [entry for entry in proxy.log if entry[1].split("?")[0].endswith(".tar")]


def sizes_of(clips) -> list[int]:
    sizes = BlockSizes(clips.data, None)
    return [size for entry in clips.data.shards for size in sizes._sizes_of(entry.name)]


def test_batches_are_those_of_local_files_and_later_epochs_fetch_nothing(remote, data, proxy, tmp_path, capsys):
    ours, theirs = train(clips_of(data.train), loader(tmp_path)), train(clips_of(remote), loader(tmp_path, workers=1))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.clips, b.clips) and torch.equal(a.index, b.index) and not b.failures
    assert len(tar_requests(proxy)) == 5 and all(method == "GET" for method, *_ in tar_requests(proxy))
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "epoch 1: 0.0 % of 5 blocks were here" in said and "epoch 2: 100.0 % of 5 blocks were here, 0 B fetched" in said
    )
    list(train(clips_of(remote), loader(tmp_path), epochs=1))  # the next run reads what this one has left
    assert len(tar_requests(proxy)) == 5
    assert len([e for e in proxy.log if "rows.json" in e[1]]) == 3


def test_a_small_budget_is_kept_and_only_what_the_plan_says_is_fetched(remote, proxy, tmp_path):
    clips = clips_of(remote)
    sizes = sizes_of(clips)
    budget = sum(sorted(sizes)[-2:]) + 4000  # of 5 blocks; the tars have some bytes beside
    folder, held = tmp_path / "local", []
    epochs = [s * 2 + r // 64 for s, r in map(order_of(clips).epoch, range(3))]
    expected = sum(sizes[b] for step in steps_of(epochs, sizes, budget) for b in step.fetch)
    before = proxy.sent
    for _ in train(clips, loader(folder, f"{budget}B"), epochs=3):
        held.append(sum(sizes_there(folder)))
    assert max(held) <= budget
    fetched = proxy.sent - before - sum((remote / f"{e.name}.rows.json").size() for e in clips.data.shards)
    assert fetched == expected > sum(sizes)
    with pytest.raises(
        ReskdError, match=r"in use at once \(2 blocks: 1 streams × \(1 \+ 1\) blocks of 64 rows\): raise it"
    ):
        train(clips, loader(folder, f"{budget // 2}B"))


def test_a_resume_begins_in_the_middle(remote, data, proxy, tmp_path):
    whole = train(clips_of(data.train), loader(tmp_path), epochs=1)
    rest = train(clips_of(remote), loader(tmp_path), epochs=1, start=(0, 20))
    for a, b in zip(list(whole)[20:], rest, strict=True):
        assert torch.equal(a.clips, b.clips) and torch.equal(a.index, b.index)


def test_validation_reads_ahead_and_a_later_one_fetches_nothing(remote, data, proxy, tmp_path):
    ours = list(batches_in_order(clips_of(data.train), loader(tmp_path), 6, ALONE))
    for fetched in (5, 5):
        theirs = list(batches_in_order(clips_of(remote), loader(tmp_path), 6, ALONE))
        assert all(
            torch.equal(a.clips, b.clips) and torch.equal(a.index, b.index) for a, b in zip(ours, theirs, strict=True)
        )
        assert len(tar_requests(proxy)) == fetched
    # A budget that holds three of the five blocks: the next pass fetches what it must, not all.
    small = loader(tmp_path / "small", f"{sum(sorted(sizes_of(clips_of(remote)))[-3:])}B")
    for fetched in (10, 13):
        list(batches_in_order(clips_of(remote), small, 6, ALONE))
        assert 10 <= len(tar_requests(proxy)) <= fetched


def test_an_actor_beside_others_reads_its_own_run(remote, data, tmp_path, monkeypatch):
    """Four processes share the machine, and this one is a run of its own: blocks go when it has used them."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    clips = clips_of(remote)
    small = loader(tmp_path, f"{sum(sorted(sizes_of(clips))[-4:])}B")
    order = order_of(clips)
    theirs = list(batches_of_run(clips, order, 2, (0, 0), small, ALONE))
    ours = list(batches_of_run(clips_of(data.train), order, 2, (0, 0), small, ALONE))
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(ours, theirs, strict=True))


def test_two_ranks_share_the_blocks(remote, data, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    meeting, answers = threading.Barrier(2, timeout=60), [None, None]

    class Rank(Ranks):
        def gather(self, value):
            answers[self.rank] = value
            meeting.wait()
            found = list(answers)
            meeting.wait()
            return found

    def run(rank, found):
        clips = clips_of(remote)
        found += batches_of_run(
            clips, order_of(clips, group=2), 1, (0, 0), loader(tmp_path), Rank(rank, 2, ALONE.device)
        )

    local_rank = threading.local()
    monkeypatch.setattr("stages.runtime.distributed.rank_of_machine", lambda: getattr(local_rank, "number", 0))
    results = [[], []]

    def begin(rank):
        local_rank.number = rank
        run(rank, results[rank])

    threads = [threading.Thread(target=begin, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clips = clips_of(data.train)
    alone = list(batches_of_run(clips, order_of(clips, group=2), 1, (0, 0), loader(tmp_path), ALONE))
    for number, batch in enumerate(alone):
        assert torch.equal(batch.index, results[number % 2][number // 2].index)
        assert torch.equal(batch.clips, results[number % 2][number // 2].clips)
    assert len(tar_requests(proxy)) == 5


def test_two_runs_have_folders_of_their_own(remote, tmp_path):
    first = train(clips_of(remote), loader(tmp_path), epochs=1)
    next(first)
    second = list(train(clips_of(remote), loader(tmp_path), epochs=1))
    assert len(list(tmp_path.glob("*/progress"))) == 2
    assert len(second) == 1 + len(list(first))


# Faults


def test_a_damaged_block_is_fetched_once_more(remote, data, proxy, tmp_path):
    list(train(clips_of(remote), loader(tmp_path), epochs=1))
    damaged = sorted(tmp_path.glob("*/*.0"))[0]
    content = damaged.read_bytes()
    damaged.write_bytes(bytes(len(content)))
    sorted(tmp_path.glob("*/*.1"))[0].write_bytes(b"short")
    batches = list(train(clips_of(remote), loader(tmp_path), epochs=1))
    assert not any(batch.failures for batch in batches)
    assert damaged.read_bytes() == content and len(tar_requests(proxy)) == 7


def test_a_shard_that_was_replaced_is_an_error_and_a_changed_clip_costs_a_clip(remote, data, s3, tmp_path):
    changed = UrlPath(s3.bucket) / "blocks-changed"
    upload_folder(data.train, changed)
    clips = clips_of(changed)
    shard, row = clips.data.shards[2].name, clips.data.rows(clips.data.shards[2].name)[8]
    flipped = bytearray((remote / shard).read_bytes())
    flipped[row.offset + row.size // 2] ^= 1
    (changed / shard).write_bytes(bytes(flipped))
    failures = [line for batch in train(clips, loader(tmp_path), epochs=1) for line in batch.failures]
    assert len(failures) == 1 and row.key in failures[0] and "other content" in failures[0]
    (changed / shard).write_bytes(bytes(flipped[:5000]))
    with pytest.raises(ReskdError, match=f"{shard}: 5000 bytes, the index has") as caught:
        list(train(clips_of(changed), loader(tmp_path / "other"), epochs=1))
    assert not isinstance(caught.value, StoreError)
    (changed / shard).unlink()
    with pytest.raises(ReskdError, match=f"{shard}: missing shard"):
        list(train(clips_of(changed), loader(tmp_path / "third"), epochs=1))


def test_a_store_that_is_away_is_an_error_in_time_and_nothing_is_lost(remote, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("RESKD_STORE_SECONDS", "1")
    connections.cache_clear()
    clips = clips_of(remote)
    sizes_of(clips)
    budget = f"{sum(sorted(sizes_of(clips))[-2:]) + 4000}B"
    batches, began = train(clips, loader(tmp_path, budget), epochs=3), time.monotonic()
    next(batches)
    proxy.unavailable = 10**6
    with pytest.raises(StoreError, match="503.*RESKD_STORE_SECONDS"):
        list(batches)
    assert time.monotonic() - began < 30
    proxy.unavailable = 0
    assert len(list(train(clips, loader(tmp_path, budget), epochs=1))) == 25


def test_a_full_disk_is_refused_or_said(remote, data, tmp_path, monkeypatch):
    from stages.stream import local_folder

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(local_folder.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ReskdError, match="1 kB are free.*lower loader.local.budget"):
        train(clips_of(remote), loader(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(ReskdError, match="No space left on device.*loader.local.path"):
        list(train(clips_of(remote), loader(tmp_path)))


def full_disk(path, data):
    raise OSError(28, "No space left on device")


def test_the_config_takes_sizes_alone():
    with pytest.raises(ReskdError, match=r"local.budget.*no size: give a number"):
        load_config(LoaderConfig, None, ["local.budget=lots"])
