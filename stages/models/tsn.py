"""TSN (Wang et al. 2016, "Temporal Segment Networks"): a 2D network of timm on every frame, averaged by the head."""

from __future__ import annotations

import copy
import difflib
from typing import TYPE_CHECKING

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from cache.errors import ReskdError

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig


def build_backbone(config: ModelConfig, pretrained: bool) -> nn.Module:
    """A network of timm whose `forward_features` gives [N, num_features, h, w], without its classifier.

    Parameters that only timm's own head would use, such as MobileNetV3's `conv_head`, are frozen.

    Raises:
        ReskdError: timm has no such network, refuses an argument, can't give its pretrained weights, or the network
            gives no such map.
    """
    net = _create(config, timm.list_models())
    unused = [] if isinstance(net, ResNet) else _behind_the_map(net, config.backbone)
    if pretrained:
        net = _create_pretrained(config)
    for name in unused:
        net.get_parameter(name).requires_grad_(False)  # else DistributedDataParallel waits for its gradient
    return net


def build_resnet(config: ModelConfig, pretrained: bool) -> ResNet:
    """The same for a network that must be a ResNet of timm.

    Raises:
        ReskdError: as `build_backbone`, or the network is another kind of one.
    """
    net = _create(config, timm.list_models(module="resnet"))
    if not isinstance(net, ResNet):
        raise ReskdError(
            f"backbone {config.backbone!r} is a {type(net).__name__}, and arch {config.arch} needs a ResNet: "
            "choose one like 'resnet50', or arch tsn"
        )
    return _create_pretrained(config) if pretrained else net


def encode_frames(backbone: nn.Module, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T, h, w, D], frame by frame, in channels-last memory."""
    frames = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    maps = backbone.forward_features(frames)
    return maps.permute(0, 2, 3, 1).unflatten(0, clips.shape[:2])


def _arguments(config: ModelConfig) -> dict:
    """For `timm.create_model`: lists, as YAML has them, as tuples."""
    if "drop_path_rate" in config.args:
        raise ReskdError(f"model.args has drop_path_rate {config.args['drop_path_rate']}: give it as model.drop_path")
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in config.args.items()}
    if config.drop_path:
        args["drop_path_rate"] = config.drop_path
    return {"num_classes": 0, "global_pool": "", **args}


def _create(config: ModelConfig, known: list[str]) -> nn.Module:
    name, args = config.backbone, _arguments(config)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise ReskdError(
            f"backbone {name!r} is not a model of timm {timm.__version__}; try {', '.join(near) or 'resnet50'}"
        )
    try:
        return timm.create_model(name, pretrained=False, **args)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError, LookupError) as error:
        raise ReskdError(
            f"timm can't build the backbone {name!r} with args {config.args} and drop_path {config.drop_path}: "
            f"{error}; correct `args`"
        ) from error


def _create_pretrained(config: ModelConfig) -> nn.Module:
    try:  # whatever keeps the weights away (network, disk, other widths), the remedy is the same
        return timm.create_model(config.backbone, pretrained=True, **_arguments(config))
    except Exception as error:
        raise ReskdError(
            f"timm's pretrained weights of the backbone {config.backbone!r} (args {config.args}) can't be had: "
            f"{type(error).__name__}: {error}; where the network is missing, download them once on another machine and "
            "copy its Hugging Face cache (HF_HOME), or start from a local checkpoint, or from no weights"
        ) from error


def _behind_the_map(net: nn.Module, name: str) -> list[str]:
    """Names of the parameters that the feature map doesn't depend on. Tried on shapes alone, at the net's usual size.

    Raises ReskdError where `forward_features` gives no [N, num_features, h, w].
    """
    twin = copy.deepcopy(net).to("meta").eval()
    size = getattr(net, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    try:
        with torch.enable_grad():
            maps = twin.forward_features(torch.empty(2, *size, device="meta"))
    except Exception as error:
        raise ReskdError(f"backbone {name!r} gives no feature map at {size[-1]} px: {error}; choose another") from error
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[1] != net.num_features:
        found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ReskdError(
            f"backbone {name!r} gives {found} for 2 frames, and a map [2, {net.num_features}, h, w] is needed: choose a "
            "convolutional network, such as 'resnet50' or 'tf_efficientnet_lite0'"
        )
    parameters = dict(twin.named_parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(maps.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
