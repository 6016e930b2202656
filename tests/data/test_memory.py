"""Memory by the machine: how many workers a run takes, and what each rank may have."""

import math

import numpy as np
import pytest

from stages.runtime.memory import available_memory, memory_of_rank
from stages.stream.config import LoaderConfig
from stages.stream.loading import decoding_workers, replaying_workers
from stages.stream.order import Order, workers_of_run


def blocks(streams: int, world: int, workers: int) -> int:
    """Windows of blocks that all processes keep, counted one by one: a process serves every (world × workers)-th batch."""
    readers = world * workers
    return sum(len({batch % streams for batch in range(reader, reader + streams * readers, readers)})
               for reader in range(readers))  # fmt: skip


def test_no_other_number_of_workers_up_to_the_limit_keeps_fewer_blocks_and_of_equal_ones_the_largest_is_taken():
    for world in range(1, 65):
        for most in range(1, 65):
            taken = replaying_workers(LoaderConfig(workers=most), 64, world)
            kept = {n: math.lcm(64, world * n) for n in range(1, most + 1)}
            assert kept[taken] == min(kept.values())
            assert all(count > kept[taken] for n, count in kept.items() if n > taken)
    for world, n in ((1, 14), (8, 10), (3, 5), (8, 8), (2, 3)):
        assert blocks(64, world, n) == math.lcm(64, world * n)


def order(clips: int, views: int | None) -> Order:
    return Order([np.arange(clips)], ["a.tar"], 0, 16, 1, 16, 64, views)


def test_a_run_on_a_large_cache_takes_fewer_workers_where_that_saves_memory_and_others_take_all():
    loader = LoaderConfig(workers=14)
    assert workers_of_run(order(10**6, 2), loader, 1) == 8  # 14 would keep seven times as many blocks
    assert workers_of_run(order(10**6, None), loader, 1) == 14  # fresh views
    assert workers_of_run(order(100, 2), loader, 1) == 14  # a few blocks in all
    assert workers_of_run(order(10**6, 2), LoaderConfig(workers=0), 8) == 0


def test_ranks_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of_rank() == pytest.approx(available_memory() / 4, rel=0.2)
    assert decoding_workers(LoaderConfig()) >= 1
