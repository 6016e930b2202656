"""BatchNorm statistics, estimated again on the views that a teacher will see (`teacher.bn: recalibrate`)."""

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
    model: nn.Module,
    batches: Iterable[Tensor],
    dtype: torch.dtype,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t,
) -> int:
    """Set the running statistics to the averages, over the batches, of each batch's mean and unbiased variance.

    This is torch's own cumulative average (momentum None). All other layers stay in eval mode: no dropout, no
    stochastic depth. `batches`: uint8 [n,T,3,S,S] on the model's device, of any n. `sum_over_ranks` sums a tensor over
    the processes that share the batches; all of them end with the same statistics. Returns the number of batches of all
    processes, which is also `num_batches_tracked`. The model is in eval mode afterwards.

    Raises ReskdError where there is no batch at all, and for a batch that leaves a layer a single value per channel.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    rank_count = 0
    for clips in batches:
        with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            _forward(model, clips)
        rank_count += 1
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
    # Weighted by each process's batches, in float64: with one process the values come back as they were.
    sums = sum_over_ranks(torch.cat([torch.full((1,), rank_count, dtype=torch.float64, device=statistics[0].device),
                                     *(s.flatten().double() * rank_count for s in statistics)]))  # fmt: skip
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
            f"teacher.bn: recalibrate: a batch of {len(clips)} clips leaves a BatchNorm layer one value per channel, which "
            "has no variance: set another teacher.batch_size, a larger teacher.size, or teacher.bn=running"
        ) from error
