"""Ranks: the only file that touches torch.distributed. One process without torchrun is rank 0 of 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cache.errors import ReskdError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def of_machine(self) -> range:
        """The ranks of this run on this machine. An actor of an engine is alone, whatever else runs beside it."""
        first = self.rank - min(self.rank, rank_of_machine())
        return range(first, min(first + ranks_of_machine(), self.world))

    def barrier(self) -> None:
        """Wait for all ranks. Objects go over gloo, also beside NCCL, whose barrier would occupy the devices."""
        self.gather(None)

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

    def failed(self, own_errors: Mapping[int, Exception]) -> dict[int, Exception]:
        """The errors of all ranks, on every rank. Errors of other ranks are ReskdErrors: some exceptions can't be sent."""
        if self.world == 1:
            return dict(own_errors)
        sent = {
            i: e if type(e) is ReskdError else ReskdError(f"{type(e).__name__}: {e}") for i, e in own_errors.items()
        }
        all_errors = {i: error for errors in self.gather(sent) for i, error in errors.items()}
        return dict(sorted((all_errors | own_errors).items()))

    def run_on_first(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 while the other ranks wait. Every rank raises the ReskdError that rank 0 raises."""
        failure = None
        if self.first:
            try:
                work()
            except ReskdError as error:
                failure = error
        failure = self.gather(failure)[0]
        if failure is not None:
            raise failure

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank. Every rank raises the ReskdError that rank 0 raises."""
        if self.world == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = work()
            except ReskdError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def average_statistics(self, model: torch.nn.Module) -> None:
        """Average BatchNorm's running statistics over the ranks. Each rank has its own until then."""
        if self.world > 1:
            # timm imports torchvision and a compiler: 2 s in each process, also in a pack's.
            from timm.utils import distribute_bn

            distribute_bn(model, self.world, reduce=True)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return any(self.gather(flag))

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` in DistributedDataParallel if there are several ranks. Buffers are not synchronised."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def without_sync(self, model: torch.nn.Module, skip: bool) -> AbstractContextManager:
        """With `skip`, gradients are not reduced over the ranks: for micro-batches before the last of a step."""
        return model.no_sync() if self.world > 1 and skip else nullcontext()


def ranks_of_machine() -> int:
    """The number of processes on this machine, ranks or an engine's actors, which share its cores and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank_of_machine() -> int:
    """The number of this rank among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def cores() -> int:
    """The number of this machine's cores that one rank may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // ranks_of_machine())


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """For steps of training: CUDA computes float32 products in TensorFloat-32, and takes the fastest kernel for each convolution.

    Results differ in their last bits from run to run. So caches and scores, which are compared, are computed without it. On a
    CPU nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


def wait_for(device: torch.device) -> None:
    """Wait until the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether forwards run in bfloat16 by default: on CUDA devices whose tensor cores have it (compute capability 8.0)."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def join_ranks(timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Inside another such context the outer group is used: torchrun's store can't make a second one in the same process.
    `timeout`: a rank that waits longer for another one ends the run with an error.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = _own_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count())
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Workers decode on the other cores: with a thread for every core, threads would wait for each other at each layer.
        torch.set_num_threads(max(1, cores() // 2))
    joins = world > 1 and not dist.is_initialized()
    if joins:
        cuda = device.type == "cuda"  # then objects and flags go over gloo, gradients over NCCL
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        store, *_ = next(dist.rendezvous("env://", timeout=timeout))
        store.set(f"device {rank}", _kind(device))
        check_same_kind([store.get(f"device {r}").decode() for r in range(world)])
        dist.init_process_group(
            backend, timeout=timeout, store=store, rank=rank, world_size=world, device_id=device if cuda else None
        )
    try:
        yield Ranks(rank, world, device)
    finally:
        if joins:
            dist.destroy_process_group()


def _own_gpu(local_rank: int, gpus: int) -> torch.device:
    """The GPU of a process. Raises ReskdError if this machine has more processes than GPUs."""
    if local_rank >= gpus:
        raise ReskdError(
            f"process {local_rank} of this machine (they count from 0) has no GPU of its own: it sees {gpus}. Start one process "
            f'a GPU (torchrun --nproc-per-node {gpus}), or none on GPUs (CUDA_VISIBLE_DEVICES="")'
        )
    return torch.device("cuda", local_rank)


def _kind(device: torch.device) -> str:
    """What ranks must agree on, for messages: where they compute, and in which numbers."""
    if device.type == "cpu":
        return "a CPU"
    return f"a GPU {'with' if has_bfloat16(device) else 'without'} bfloat16"


def check_same_kind(kinds: Sequence[str]) -> None:
    """Raise ReskdError unless all ranks, in their order, have one kind of device: others would wait, or round differently."""
    other = next((rank for rank, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        raise ReskdError(
            f"the processes have different devices: process 0 has {kinds[0]}, process {other} has {kinds[other]}. Start them on "
            'machines of one kind, or all without GPUs (CUDA_VISIBLE_DEVICES="")'
        )
