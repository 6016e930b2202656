"""Optimizer and learning-rate schedule from their config: torch's and timm's, put together."""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler

from stages.config import OptimConfig, ScheduleConfig


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """The config's rate is for `lr_batch` clips a step: scaled linearly to the real number (Goyal et al. 2017)."""
    return config.lr * global_batch / config.lr_batch


def build_optimizer(model: torch.nn.Module, config: OptimConfig, global_batch: int) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only. Fused on CUDA."""
    groups = param_groups_weight_decay(model, config.weight_decay)
    fused = next(model.parameters()).is_cuda
    lr = scaled_lr(config, global_batch)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=fused)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=fused)


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int) -> Scheduler:
    """A pure function of the step: `schedule.step_update(step)` sets the rate of that step (counted from 0)."""
    warmup = min(round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch - 1)
    first = optimizer.param_groups[0]["lr"] / (warmup + 1)  # a rate of 0 would waste the first step
    common = {"warmup_t": warmup, "warmup_lr_init": first, "t_in_epochs": False}
    if config.name == "cosine":
        total = config.epochs * steps_per_epoch
        return CosineLRScheduler(optimizer, t_initial=total - warmup, warmup_prefix=True, **common)
    steps = [m * steps_per_epoch + 1 for m in config.milestones]  # timm looks one step ahead
    return MultiStepLRScheduler(optimizer, decay_t=steps, decay_rate=config.gamma, warmup_prefix=False, **common)
