"""The optimizer, its parameter groups, and the learning-rate schedule, made from their configs."""

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
    """How a group of parameters is trained."""

    rate: float  # multiple of the learning rate
    decays: bool  # with weight decay


# The groups of each value of `optim.groups`. The first has the full rate: the log shows the rate of the first group.
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
    """The config's rate, which is meant for `lr_batch` clips a step, for `global_batch` clips.

    linear: times the ratio of the two (for SGD: Goyal et al. 2017); sqrt: times its root (for Adam: Malladi et al. 2022).
    """
    return config.lr * (global_batch / config.lr_batch) ** {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[config.scale]


def build_optimizer(model: nn.Module, config: OptimConfig, global_batch: int) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters, in the groups that `config.groups` names. Fused on CUDA.

    Not fused on CPUs, though it would be five times as fast: if a parameter and its gradient have different memory
    layouts, torch 2.15 silently pairs the wrong numbers.
    """
    groups = param_groups(model, config, scaled_lr(config, global_batch))
    fused = next(model.parameters()).is_cuda
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, momentum=config.momentum, fused=fused)


def param_groups(model: nn.Module, config: OptimConfig, lr: float) -> list[dict]:
    """The groups of trainable parameters. Each parameter is in one group. Each group has a `name`, and none is empty.

    `initial_lr` is the group's rate before the schedule's factor.
    """
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS[config.groups]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = model.get_submodule(name.rpartition(".")[0])
            members[_group_of(config.groups, name, parameter, isinstance(owner, NORMS))].append(parameter)
    groups = []
    for name, (rate, decays) in GROUPS[config.groups].items():
        if members[name]:
            weight_decay = config.weight_decay if decays else 0.0
            rates = {"lr": lr * rate, "initial_lr": lr * rate, "weight_decay": weight_decay}
            groups.append({"name": name, "params": members[name], **rates})
    return groups


def _group_of(groups: str, name: str, parameter: nn.Parameter, is_norm: bool) -> str:
    """The group of the parameter `name` of the model.

    Upstream's config has keys for a tenth of the rate in the backbone, and for no decay on norms and position biases.
    swin applies all keys that fit. mmcv, which upstream uses, applies only the longest key in a parameter's name:
    swin_upstream has the groups that follow from that.
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
    """Learning rates as a function of the step alone."""

    optimizer: torch.optim.Optimizer
    config: ScheduleConfig
    steps_per_epoch: int

    def factor(self, step: int) -> float:
        """What each group's rate is multiplied by at a step, counted from 0.

        The warm-up rises linearly from 1 / (its steps + 1); a first step at rate 0 would be wasted. The cosine begins
        after the warm-up. With by_epoch it begins at epoch 0, and the warm-up multiplies it (as in mmcv).
        """
        config, epoch, total = self.config, step // self.steps_per_epoch, self.config.epochs * self.steps_per_epoch
        warmup = min(round((config.warmup_epochs or 0) * self.steps_per_epoch), total - 1)
        ramp = min(1.0, (step + 1) / (warmup + 1))
        if config.name == "step":
            return ramp * config.gamma ** bisect_right(config.milestones, epoch)
        progress = epoch / config.epochs if config.by_epoch else max(0, step - warmup) / (total - warmup)
        return ramp * 0.5 * (1 + math.cos(math.pi * progress))

    def step_update(self, step: int) -> None:
        """Set the rates of a step, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step)


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    """The schedule of an optimizer that `build_optimizer` made.

    timm's schedulers start the warm-up of every group at one rate, and have no warm-up by step with a cosine by epoch.
    """
    return Schedule(optimizer, config, steps_per_epoch)
