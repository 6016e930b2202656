"""SlowOnly (Feichtenhofer et al. 2019, "SlowFast Networks"): a ResNet of timm whose convolutions are inflated to 3D.

The kernels look at one frame, but for `conv1` of every block of layer3 and layer4, which look at three; time is never
strided. The keys stay those of the plain ResNet, so that a 2D checkpoint fits once `inflate_weight` gave it a depth.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.tsn import build_resnet

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

TEMPORAL = re.compile(r"layer[34]\.\d+\.conv1")  # the convolutions that look at three frames
_CONTAINERS = (ResNet, BasicBlock, Bottleneck, nn.Sequential)
_POINTWISE = (nn.ReLU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Identity, DropPath)


def inflate_weight(weight: Tensor, depth: int) -> Tensor:
    """[O, I, k, k] -> [O, I, depth, k, k]: repeated in time and divided by `depth`, so that a still clip gives the same
    (Carreira & Zisserman 2017, "Quo Vadis")."""
    return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth


def build_slowonly(config: ModelConfig, pretrained: bool) -> ResNet:
    """A ResNet of timm made 3D; from timm's weights inflated, or freshly initialised.

    Raises:
        ReskdError: as `build_resnet`, or the ResNet has a part that can't be inflated.
    """
    net = inflate(build_resnet(config, pretrained), config.backbone)
    if not pretrained:  # three equal slices of a random kernel would only learn to differ
        for name, module in net.named_modules():
            if TEMPORAL.fullmatch(name):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def encode_volume(backbone: ResNet, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T, h, w, D], in channels-last memory."""
    volumes = clips.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
    return backbone.forward_features(volumes).permute(0, 2, 3, 4, 1)


def inflate(net: ResNet, name: str) -> ResNet:
    """Make a 2D ResNet, called `name` in messages, 3D in place, weights included.

    Raises:
        ReskdError: it has a part other than plain convolutions, BatchNorm, pooling and pointwise functions.
    """
    for path, module in list(net.named_modules()):
        if path.split(".")[0] in ("global_pool", "fc"):
            continue  # not run: VideoModel has its own head
        children = next(module.children(), None) is not None
        if children and type(module) in _CONTAINERS:
            continue
        inflated = None if children else _inflated(module, 3 if TEMPORAL.fullmatch(path) else 1)
        if inflated is None:
            raise ReskdError(
                f"backbone {name!r} can't be made 3D: its {path} is a {type(module).__name__}; choose a plain ResNet, "
                "such as 'resnet50', without anti-aliasing, attention, or other norms"
            )
        if inflated is not module:
            net.set_submodule(path, inflated)
    return net


def _inflated(module: nn.Module, depth: int) -> nn.Module | None:
    """The 3D module of a 2D one, with its weights; None where there is none."""
    kind = type(module)  # exactly: a subclass may compute something else
    if kind in _POINTWISE:
        return module
    if kind is nn.Conv2d:
        return _conv3d(module, depth)
    if kind is nn.BatchNorm2d:
        norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, device=module.weight.device)
        norm.load_state_dict(module.state_dict(), assign=True)
        return norm
    if kind is nn.MaxPool2d:
        kernel, stride, padding = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
        return nn.MaxPool3d((1, *kernel), (1, *stride), (0, *padding), ceil_mode=module.ceil_mode)
    if kind is nn.AvgPool2d:
        kernel, stride, padding = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
        return nn.AvgPool3d((1, *kernel), (1, *stride), (0, *padding), module.ceil_mode, module.count_include_pad)
    return None


def _conv3d(conv: nn.Conv2d, depth: int) -> nn.Conv3d:
    made = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=(depth, *conv.kernel_size),
        stride=(1, *conv.stride),
        padding=(depth // 2, *conv.padding),
        dilation=(1, *conv.dilation),
        groups=conv.groups,
        bias=False,
        device="meta",  # no numbers drawn for weights that are replaced at once
    )
    made.weight = nn.Parameter(inflate_weight(conv.weight.detach(), depth))
    made.bias = conv.bias
    return made


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
