"""BatchNorm statistics estimated anew on the views that a teacher is to answer for (`teacher.bn: recalibrate`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cache.errors import ReskdError


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Tensor], dtype: torch.dtype, total: Callable[[Tensor], Tensor] = lambda t: t
) -> int:
    """Set the running statistics to the averages, over the batches, of each batch's mean and unbiased variance.

    Torch's own cumulative average (momentum None), with all other layers as they are in eval mode: no dropout, no
    stochastic depth. `batches`: uint8 [n,T,3,S,S] on the model's device, of any n. `total` sums a tensor over the
    processes that share the batches, each of which ends with the same statistics. Returns the number of batches of
    all, which `num_batches_tracked` says too. The model is in eval mode afterwards.

    Raises ReskdError where there is no batch at all, and for one that leaves a layer a single value per channel.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    own = 0
    for clips in batches:
        with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            _forward(model, clips)
        own += 1
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
    # Weighted by each process's batches, in float64: with one process the values come back as they were.
    sums = total(torch.cat([torch.full((1,), own, dtype=torch.float64, device=statistics[0].device),
                            *(s.flatten().double() * own for s in statistics)]))  # fmt: skip
    count = int(sums[0])
    if count == 0:
        raise ReskdError("teacher.bn: recalibrate: no clip can be decoded to estimate statistics on")
    for s, mean in zip(statistics, (sums[1:] / count).split([s.numel() for s in statistics]), strict=True):
        s.copy_(mean.view_as(s))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.num_batches_tracked.fill_(count)
        norm.momentum = momentum
    model.eval()
    return count


def _forward(model: nn.Module, clips: Tensor) -> None:
    try:
        model(clips)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ReskdError(
            f"teacher.bn: recalibrate: a batch of {len(clips)} clips leaves a BatchNorm layer one value a channel, of "
            "which there is no variance: take another teacher.batch_size, a larger teacher.size, or bn: running"
        ) from error
