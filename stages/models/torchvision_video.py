"""The video networks of torchvision beside its Swin: R(2+1)D, R3D, MC3 (Tran et al. 2018), S3D (Xie et al. 2018), MViTv2
(Li et al. 2022). Their weights keep torchvision's names.

| network                       | the map that they give at T frames | what their own classifier takes (`pooling: own`) |
|-------------------------------|------------------------------------|--------------------------------------------------|
| r2plus1d_18, r3d_18, mc3_18   | T/8 times (mc3_18: T), 512 channels| the mean of the map, as with `pooling: mean`     |
| s3d                           | T/8 times, 1024 channels           | the mean of windows of 2×7×7 positions           |
| mvit_v2_s                     | T/2 times, 768 channels            | the class token                                  |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models import video
from torchvision.models.video.mvit import MViT
from torchvision.models.video.resnet import VideoResNet
from torchvision.models.video.s3d import S3D

from cache.errors import ReskdError
from stages.models.video_model import Encoded

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

NETS = {"r2plus1d_18": 512, "r3d_18": 512, "mc3_18": 512, "s3d": 1024, "mvit_v2_s": 768}  # the channels of their maps
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
# What torchvision's files were trained on: mean and std of RGB, and pixels of the input's side.
TRAINED = dict.fromkeys(("r2plus1d_18", "r3d_18", "mc3_18"), (*KINETICS, 112))
TRAINED |= {"s3d": (*KINETICS, 224), "mvit_v2_s": ((0.45,) * 3, (0.225,) * 3, 224)}
CLASSIFIERS = {VideoResNet: "fc", S3D: "classifier.1", MViT: "head.1"}


def build_torchvision(config: ModelConfig, pretrained: bool) -> nn.Module:
    """A video network of torchvision without its classifier.

    MViT's position tables are made for 16 frames of 224 px, and interpolated for others as torchvision's code does it.

    Raises:
        ReskdError: there is no such network, it has no arguments or no stochastic depth, or `pretrained` is set.
    """
    name = config.backbone
    if name not in NETS:
        raise ReskdError(f"backbone {name!r} is not one of torchvision's video networks here: choose {', '.join(NETS)}")
    if config.args:
        raise ReskdError(f"model.args.{min(config.args)}: {name} takes no arguments: leave model.args out")
    if pretrained:
        raise ReskdError(
            f"timm has no weights of {name!r}: give a file of torchvision's by init.path, or init.source: scratch"
        )
    if config.drop_path and name != "mvit_v2_s":
        raise ReskdError(f"model.drop_path {config.drop_path}: {name} has no stochastic depth: set it to 0")
    args = {"stochastic_depth_prob": config.drop_path} if name == "mvit_v2_s" else {}
    net = getattr(video, name)(weights=None, num_classes=1, **args)
    classifier = CLASSIFIERS[type(net)]
    net.set_submodule(classifier, nn.Identity())
    net.pretrained_cfg = {"classifier": classifier}  # where a file has its classifier, as timm's networks say it
    net.num_features = net.pooled_features = NETS[name]
    net.pools = not isinstance(net, VideoResNet)  # before its classifier in torchvision's files
    return net


def encode_torchvision(net: nn.Module, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T', h, w, D]."""
    return _maps(net, clips)[0]


def encode_torchvision_pooled(net: nn.Module, clips: Tensor) -> Encoded:
    """The map, and what the network's own classifier takes."""
    maps, pooled = _maps(net, clips)
    if isinstance(net, S3D):  # the mean over windows counts the middle of the map more often than its ends
        pooled = net.avgpool(maps.permute(0, 4, 1, 2, 3)).mean((2, 3, 4))
    elif pooled is None:
        pooled = maps.mean((1, 2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))
    return Encoded(maps, pooled)


def _maps(net: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor | None]:
    """The map [B, T', h, w, D], and the class token [B, D] of a network that has one."""
    volumes = clips.transpose(1, 2)
    if isinstance(net, MViT):
        patches = net.conv_proj(volumes)
        thw = tuple(patches.shape[2:])
        tokens = net.pos_encoding(patches.flatten(2).transpose(1, 2))
        for block in net.blocks:
            tokens, thw = block(tokens, thw)
        tokens = net.norm(tokens)
        return tokens[:, 1:].unflatten(1, thw), tokens[:, 0]
    if isinstance(net, S3D):
        return net.features(volumes).permute(0, 2, 3, 4, 1), None
    maps = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(volumes)))))
    return maps.permute(0, 2, 3, 4, 1), None
