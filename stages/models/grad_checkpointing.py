"""Gradient checkpointing: less memory in training, for a second forward of each block."""

import copy
from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cache.errors import ReskdError
from stages.models.swin import Block
from stages.models.video_model import VideoModel


def enable_grad_checkpointing(model: VideoModel, compiled: bool) -> None:
    """Keep the inputs of the backbone's blocks alone for the backward pass, which runs the blocks again.

    Gradients stay the same, and so do BatchNorm's running statistics: eager mode updates them on both runs, so there
    the momentum m becomes 1 - sqrt(1 - m), twice of which is m once; a `compiled` model updates them on one run.

    Raises:
        ReskdError: timm's network has no blocks to run again.
    """
    blocks = [module for module in model.backbone.modules() if isinstance(module, Block)]
    for block in blocks:
        block.grad_checkpointing = True
    if blocks:
        return  # a Swin has no BatchNorm
    try:
        model.backbone.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        raise ReskdError(
            f"timm's {type(model.backbone).__name__} has no gradient checkpointing: set grad_checkpointing: false"
        ) from error
    for norm in [] if compiled else _norms_run_twice(model):
        norm.momentum = 1 - (1 - norm.momentum) ** 0.5


def _norms_run_twice(model: VideoModel) -> list[nn.Module]:
    """The BatchNorms that a forward and backward pass runs twice, found on shapes alone."""
    runs = Counter()
    twin = copy.deepcopy(model).to("meta").train()
    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(partial(lambda name, *_: runs.update([name]), name))
    twin.extract(torch.empty(2, model.num_frames, 3, 224, 224, dtype=torch.uint8, device="meta")).sum().backward()
    return [model.get_submodule(name) for name, number in runs.items() if number == 2]
