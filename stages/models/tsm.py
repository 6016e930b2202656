"""TSM: a TSN whose residual blocks see a part of the neighbouring frames' channels (Lin et al. 2019, "Temporal Shift").

The shift has no parameters and hangs on `conv1` of the blocks as a hook: the keys stay those of the plain ResNet.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.tsn import build_resnet

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

DEEP = 23  # blocks in layer3 (ResNet-101 and deeper) from which on only every other block shifts, as in the seed


def build_tsm(config: ModelConfig, pretrained: bool) -> ResNet:
    """A ResNet of timm with the shift.

    Raises:
        ReskdError: as `build_resnet`, or `shift_div` is too large.
    """
    backbone = build_resnet(config, pretrained)
    add_temporal_shift(backbone, config.num_frames, config.shift_div)
    return backbone


def temporal_shift(frames: Tensor, num_frames: int, shift_div: int) -> Tensor:
    """Shift channels of [B*T, C, h, w] in time: the first C // shift_div come from frame t+1, as many more from t-1.

    Zeros stand where there is no such frame; the other channels, the shape and the memory format stay as they are.
    """
    fold = frames.shape[1] // shift_div
    before = frames.unflatten(0, (-1, num_frames))
    after = torch.zeros_like(before)
    after[:, :-1, :fold] = before[:, 1:, :fold]
    after[:, 1:, fold : 2 * fold] = before[:, :-1, fold : 2 * fold]
    after[:, :, 2 * fold :] = before[:, :, 2 * fold :]
    return after.flatten(0, 1)


def add_temporal_shift(backbone: ResNet, num_frames: int, shift_div: int) -> None:
    """Make the residual blocks of a ResNet shift the input of their `conv1`; frames must come as whole clips.

    Raises:
        ReskdError: a block has fewer channels than `shift_div`, so that nothing would be shifted.
    """
    step = 2 if len(backbone.layer3) >= DEEP else 1
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for block in list(stage)[::step]:
            if block.conv1.in_channels < shift_div:
                raise ReskdError(
                    f"shift_div {shift_div} is more than the {block.conv1.in_channels} channels of a block, so that "
                    "nothing would be shifted in time: lower shift_div or widen the backbone"
                )
            block.conv1.register_forward_pre_hook(partial(_shift_input, num_frames, shift_div))


def _shift_input(num_frames: int, shift_div: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return temporal_shift(inputs[0], num_frames, shift_div)
