"""Gradient checkpointing: training takes less memory and runs the forward pass of each block twice."""

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
    """Keep only the inputs of the backbone's blocks for the backward pass, which runs the blocks again.

    Gradients and BatchNorm's running statistics stay the same. Eager mode updates the statistics in both runs, so the
    momentum m becomes 1 - sqrt(1 - m): two such updates equal one with m. A `compiled` model updates them once.

    Raises:
        ReskdError: the network doesn't support it.
    """
    blocks = [module for module in model.backbone.modules() if isinstance(module, Block)]
    for block in blocks:
        block.grad_checkpointing = True
    if blocks:
        return  # a Swin has no BatchNorm
    try:
        if hasattr(model.backbone, "activation_checkpointing_enable"):  # a network of transformers
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        elif hasattr(model.backbone, "gradient_checkpointing_enable"):  # its name in older versions
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.backbone.set_grad_checkpointing()
    except (AttributeError, AssertionError, ValueError) as error:
        raise ReskdError(
            f"the network {type(model.backbone).__name__} has no gradient checkpointing: set grad_checkpointing: false"
        ) from error
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    for norm in [] if compiled else _norms_run_twice(model):
        norm.momentum = 1 - (1 - norm.momentum) ** 0.5


def _norms_run_twice(model: VideoModel) -> list[nn.Module]:
    """The BatchNorms that one forward and backward pass runs twice. A copy without data is run to find them."""
    runs = Counter()
    shapes = copy.deepcopy(model).to("meta").train()
    for name, module in shapes.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(partial(lambda name, *_: runs.update([name]), name))
    shapes.extract(torch.empty(2, model.num_frames, 3, 224, 224, dtype=torch.uint8, device="meta")).sum().backward()
    return [model.get_submodule(name) for name, number in runs.items() if number == 2]
