"""Ranks: the only file that touches torch.distributed. One process without torchrun is rank 0 of 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from timm.utils import distribute_bn

from cache.errors import ReskdError


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the ranks."""
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list[object]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        gathered: list[object] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def failed(self, mine: Mapping[int, Exception]) -> dict[int, Exception]:
        """What failed on any rank, on every rank. Another rank's error comes as a ReskdError: not every kind can travel."""
        if self.world == 1:
            return dict(mine)
        said = {i: e if type(e) is ReskdError else ReskdError(f"{type(e).__name__}: {e}") for i, e in mine.items()}
        every = {i: error for theirs in self.gather(said) for i, error in theirs.items()}
        return dict(sorted((every | mine).items()))

    def first_does(self, work: Callable[[], None]) -> None:
        """Rank 0 does it before any other goes on; what it refuses, every rank refuses."""
        refused = None
        if self.first:
            try:
                work()
            except ReskdError as error:
                refused = error
        refused = self.gather(refused)[0]
        if refused is not None:
            raise refused

    def average_statistics(self, model: torch.nn.Module) -> None:
        """BatchNorm's running statistics, which are each rank's own, averaged over the ranks."""
        if self.world > 1:
            distribute_bn(model, self.world, reduce=True)

    def any(self, flag: bool) -> bool:
        """Whether it is set on any rank."""
        return any(self.gather(flag))

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """DistributedDataParallel where there are several ranks. Buffers stay each rank's own."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def without_sync(self, model: torch.nn.Module, skip: bool) -> AbstractContextManager:
        """Leaves out the gradients' all-reduce of a micro-batch that isn't the last of its step."""
        return model.no_sync() if self.world > 1 and skip else nullcontext()


def cores() -> int:
    """Cores of this machine that this rank may use."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def join_ranks(patience: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, and leave it at the end; inside another such
    context it is that one's group (torchrun's store can't make a second one in the same process).

    `patience`: how long one rank waits for another before the run is given up.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Workers decode beside the net: threads for every core would wait for one another at each layer.
        torch.set_num_threads(max(1, cores() // 2))
    mine = world > 1 and not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield Ranks(rank, world, device)
    finally:
        if mine:
            dist.destroy_process_group()
