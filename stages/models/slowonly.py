"""SlowOnly (Feichtenhofer et al. 2019, "SlowFast Networks"): a ResNet of timm whose convolutions are inflated to 3D.

`conv1` of every block of layer3 and layer4 sees three frames, all other kernels see one. No convolution has a stride in
time. The weights keep the names of the plain ResNet, so a 2D checkpoint fits after `inflate_weight`.
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

TEMPORAL = re.compile(r"layer[34]\.\d+\.conv1")  # the convolutions that see three frames
_CONTAINERS = (ResNet, BasicBlock, Bottleneck, nn.Sequential)
_POINTWISE = (nn.ReLU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Identity, DropPath)


def inflate_weight(weight: Tensor, depth: int) -> Tensor:
    """[O, I, k, k] -> [O, I, depth, k, k]: repeated in time and divided by `depth`.

    A clip of equal frames gives the same output as one frame before (Carreira & Zisserman 2017, "Quo Vadis").
    """
    return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth


def build_slowonly(config: ModelConfig, pretrained: bool) -> ResNet:
    """A 3D ResNet with timm's inflated weights (`pretrained`) or with fresh ones.

    Raises:
        ReskdError: as `build_resnet`, or a part of the ResNet can't be inflated.
    """
    net = inflate(build_resnet(config, pretrained), config.backbone)
    if not pretrained:  # a random kernel needs no three equal slices
        for name, module in net.named_modules():
            if TEMPORAL.fullmatch(name):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def encode_volume(backbone: ResNet, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T, h, w, D], in channels-last memory."""
    volumes = clips.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
    return backbone.forward_features(volumes).permute(0, 2, 3, 4, 1)


def inflate(net: ResNet, name: str) -> ResNet:
    """Replace the 2D modules of a ResNet by 3D modules, in place, with inflated weights. Messages call it `name`.

    Raises:
        ReskdError: a part is not a plain convolution, BatchNorm, pooling or pointwise function.
    """
    for path, module in list(net.named_modules()):
        if path.split(".")[0] in ("global_pool", "fc"):
            continue  # never run: VideoModel has its own head
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
    """The 3D module of a 2D module, with inflated weights; None if the module can't be inflated."""
    kind = type(module)  # no isinstance: a subclass may compute something else
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
    inflated = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=(depth, *conv.kernel_size),
        stride=(1, *conv.stride),
        padding=(depth // 2, *conv.padding),
        dilation=(1, *conv.dilation),
        groups=conv.groups,
        bias=False,
        device="meta",  # no random numbers: the weights are replaced below
    )
    inflated.weight = nn.Parameter(inflate_weight(conv.weight.detach(), depth))
    inflated.bias = conv.bias
    return inflated


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
