"""TSM: a TSN whose residual blocks take some channels from the neighbouring frames (Lin et al. 2019, "Temporal Shift").

The shift has no parameters. It is a hook on `conv1` of the blocks, so the weights keep the names of the plain ResNet.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.functional import pad

from cache.errors import ReskdError
from stages.models.tsn import build_resnet

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

DEEP = 23  # with so many blocks in layer3 (ResNet-101 and deeper) only every second block shifts, as in upstream


def build_tsm(config: ModelConfig, pretrained: bool) -> ResNet:
    """A ResNet of timm with the temporal shift.

    Raises:
        ReskdError: as `build_resnet`, or `shift_div` is too large.
    """
    backbone = build_resnet(config, pretrained)
    add_temporal_shift(backbone, config.num_frames, config.shift_div)
    return backbone


def temporal_shift(frames: Tensor, num_frames: int, shift_div: int) -> Tensor:
    """Shift channels of [B*T, C, h, w] in time: the first C // shift_div come from frame t+1, the next as many from t-1.

    At the ends, where no such frame exists, they are zero. Other channels, the shape and the memory format don't change.
    """
    fold = frames.shape[1] // shift_div
    clips = frames.unflatten(0, (-1, num_frames))
    if torch.compiler.is_exporting():  # where an assignment to a slice becomes slow scatters, and memory has one format
        later = pad(clips[:, 1:, :fold], (0, 0, 0, 0, 0, 0, 0, 1))
        earlier = pad(clips[:, :-1, fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat([later, earlier, clips[:, :, 2 * fold :]], dim=2).flatten(0, 1)
    shifted = torch.zeros_like(clips)
    shifted[:, :-1, :fold] = clips[:, 1:, :fold]
    shifted[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    shifted[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return shifted.flatten(0, 1)


def add_temporal_shift(backbone: ResNet, num_frames: int, shift_div: int) -> None:
    """Make the residual blocks of a ResNet shift the input of their `conv1`. The frames must be those of whole clips.

    Raises:
        ReskdError: a block has fewer channels than `shift_div`.
    """
    step = 2 if len(backbone.layer3) >= DEEP else 1
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for block in list(stage)[::step]:
            if block.conv1.in_channels < shift_div:
                raise ReskdError(
                    f"shift_div {shift_div} is more than the {block.conv1.in_channels} channels of a block, and no "
                    "channel would be shifted: lower shift_div or widen the backbone"
                )
            block.conv1.register_forward_pre_hook(partial(_shift_input, num_frames, shift_div))


def shifting_blocks(backbone: ResNet) -> set[str]:
    """The blocks, such as layer1.0, whose `conv1` shifts its input."""
    return {
        name.removesuffix(".conv1")
        for name, module in backbone.named_modules()
        if name.endswith(".conv1") and module._forward_pre_hooks
    }


def _shift_input(num_frames: int, shift_div: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return temporal_shift(inputs[0], num_frames, shift_div)
