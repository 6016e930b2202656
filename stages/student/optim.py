"""Optimizer, its parameter groups, and the learning-rate schedule, from their configs."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from stages.student.config import OptimConfig, ScheduleConfig

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
POSITION = ("relative_position_bias_table", "absolute_pos_embed")


class Group(NamedTuple):
    """How a group of parameters is trained: at which multiple of the rate, and with weight decay or without."""

    rate: float
    decays: bool


# The groups of each `optim.groups`, by name. The first is one at the full rate, which the log shows.
GROUPS = {
    "matrices": {"biases_and_norms": Group(1.0, False), "weights": Group(1.0, True)},
    "all": {"all": Group(1.0, True)},
    "tsm": {"weights": Group(1.0, True), "biases": Group(2.0, False), "norms": Group(1.0, False)},
    "swin": {
        "head": Group(1.0, True),
        "head_norms": Group(1.0, False),
        "backbone": Group(0.1, True),
        "backbone_norms_and_positions": Group(0.1, False),
    },
    "swin_upstream": {
        "head": Group(1.0, True),
        "head_norms": Group(1.0, False),
        "positions": Group(1.0, False),
        "backbone": Group(0.1, True),
    },
}


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """The config's rate is for `lr_batch` clips a step: scaled linearly to the real number (Goyal et al. 2017)."""
    return config.lr * global_batch / config.lr_batch


def build_optimizer(model: nn.Module, config: OptimConfig, global_batch: int) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters, in the groups that `config.groups` names. Fused on CUDA.

    Not on CPUs, where it would be five times as fast: there torch 2.15 pairs a parameter with the wrong numbers of a
    gradient that lies otherwise in memory, without a word.
    """
    groups = param_groups(model, config, scaled_lr(config, global_batch))
    fused = next(model.parameters()).is_cuda
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, momentum=config.momentum, fused=fused)


def param_groups(model: nn.Module, config: OptimConfig, lr: float) -> list[dict]:
    """Every trainable parameter in exactly one group; groups have a `name`, and none is empty.

    `initial_lr` is the group's own rate, which the schedule multiplies.
    """
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS[config.groups]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = model.get_submodule(name.rpartition(".")[0])
            members[_group_of(config.groups, name, parameter, isinstance(owner, NORMS))].append(parameter)
    groups = []
    for name, (rate, decays) in GROUPS[config.groups].items():
        if members[name]:
            own = {"lr": lr * rate, "initial_lr": lr * rate, "weight_decay": config.weight_decay if decays else 0.0}
            groups.append({"name": name, "params": members[name], **own})
    return groups


def _group_of(groups: str, name: str, parameter: nn.Parameter, is_norm: bool) -> str:
    """The group of the parameter that the model calls `name`.

    swin puts together what the seed's keys say (a tenth of the rate in the backbone; no decay on norms and position
    biases). mmcv gives a parameter to the longest key in its name alone: swin_upstream is what that made of them.
    """
    in_backbone = "backbone" in name.split(".")
    if groups == "matrices":
        return "biases_and_norms" if parameter.ndim <= 1 or name.endswith(".bias") else "weights"
    if groups == "tsm":
        return "norms" if is_norm else "biases" if name.endswith(".bias") else "weights"
    if groups == "swin":
        if in_backbone:
            return "backbone_norms_and_positions" if is_norm or name.endswith(POSITION) else "backbone"
        return "head_norms" if is_norm else "head"
    if groups == "swin_upstream":
        if name.endswith(POSITION):
            return "positions"
        return "backbone" if in_backbone else "head_norms" if is_norm else "head"
    return "all"


@dataclass(frozen=True)
class Schedule:
    """Learning rates as a pure function of the step."""

    optimizer: torch.optim.Optimizer
    config: ScheduleConfig
    steps_per_epoch: int

    def factor(self, step: int) -> float:
        """What each group's own rate is multiplied by at a step, counted from 0.

        Warm-up rises linearly over its steps, from 1 / (their number + 1): a rate of 0 would waste the first. The
        cosine begins where it ends, but by_epoch at epoch 0, beneath the warm-up (as mmcv's).
        """
        config, epoch, total = self.config, step // self.steps_per_epoch, self.config.epochs * self.steps_per_epoch
        warmup = min(round(config.warmup_epochs * self.steps_per_epoch), total - 1)
        ramp = min(1.0, (step + 1) / (warmup + 1))
        if config.name == "step":
            return ramp * config.gamma ** bisect_right(config.milestones, epoch)
        done = epoch / config.epochs if config.by_epoch else max(0, step - warmup) / (total - warmup)
        return ramp * 0.5 * (1 + math.cos(math.pi * done))

    def step_update(self, step: int) -> None:
        """Set the rates of a step, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step)


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    """The schedule of an optimizer that `build_optimizer` made. (timm's schedulers give every group one rate to warm up
    from, and know no warm-up by step beneath a cosine by epoch.)"""
    return Schedule(optimizer, config, steps_per_epoch)
