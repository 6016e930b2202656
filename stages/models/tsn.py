"""TSN (Wang et al. 2016, "Temporal Segment Networks"): a 2D network of timm on each frame; the head averages."""

from __future__ import annotations

import copy
import difflib
import inspect
from typing import TYPE_CHECKING

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from cache.errors import ReskdError

# Those that load weights from files and addresses: a checkpoint's own description may name arguments, too.
LOADING_ARGUMENTS = inspect.signature(timm.create_model).parameters.keys() - {"kwargs"}

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig


def build_backbone(config: ModelConfig, pretrained: bool) -> nn.Module:
    """A network of timm without its classifier. Its `forward_features` returns a map [N, num_features, h, w].

    Parameters that only timm's own head uses, such as MobileNetV3's `conv_head`, are frozen.

    Raises:
        ReskdError: timm has no such network or refuses an argument, the pretrained weights can't be loaded, or the
            network returns no such map.
    """
    net = _create(config, timm.list_models())
    unused = [] if isinstance(net, ResNet) else _unused_parameters(net, config.backbone)
    if pretrained:
        net = _create_pretrained(config)
    for name in unused:
        net.get_parameter(name).requires_grad_(False)  # or DistributedDataParallel waits for a gradient
    return net


def build_resnet(config: ModelConfig, pretrained: bool) -> ResNet:
    """A ResNet of timm.

    Raises:
        ReskdError: as `build_backbone`, or the network is no ResNet.
    """
    net = _create(config, timm.list_models(module="resnet"))
    if not isinstance(net, ResNet):
        raise ReskdError(
            f"backbone {config.backbone!r} is a {type(net).__name__}, and arch {config.arch} needs a ResNet: "
            "choose a ResNet such as 'resnet50', or arch tsn"
        )
    return _create_pretrained(config) if pretrained else net


def encode_frames(backbone: nn.Module, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T, h, w, D] of each frame, in channels-last memory."""
    frames = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    maps = backbone.forward_features(frames)
    return maps.permute(0, 2, 3, 1).unflatten(0, clips.shape[:2])


def timm_arguments(config: ModelConfig) -> dict:
    """The arguments for `timm.create_model`. YAML's lists become tuples."""
    if "drop_path_rate" in config.args:
        raise ReskdError(f"model.args has drop_path_rate {config.args['drop_path_rate']}: give it as model.drop_path")
    if loading := sorted(config.args.keys() & LOADING_ARGUMENTS):
        raise ReskdError(
            f"model.args has {loading[0]}: only arguments of the network itself; weights come from init.path"
        )
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in config.args.items()}
    if config.drop_path:
        args["drop_path_rate"] = config.drop_path
    return {"num_classes": 0, "global_pool": "", **args}


def _create(config: ModelConfig, known: list[str]) -> nn.Module:
    name, args = config.backbone, timm_arguments(config)
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
    try:  # all reasons (network, disk, other widths) have the same remedy
        return timm.create_model(config.backbone, pretrained=True, **timm_arguments(config))
    except Exception as error:
        raise ReskdError(
            f"timm's pretrained weights of the backbone {config.backbone!r} (args {config.args}) can't be loaded: "
            f"{type(error).__name__}: {error}; without a network, download them on another machine and copy its Hugging "
            "Face cache (HF_HOME), or start from a local checkpoint (init.path), or set init.source: scratch"
        ) from error


def _unused_parameters(net: nn.Module, name: str) -> list[str]:
    """The names of the parameters on which the feature map doesn't depend, found with a copy that has shapes but no data.

    Raises ReskdError if `forward_features` returns no map [N, num_features, h, w] at the network's usual size.
    """
    shapes = copy.deepcopy(net).to("meta").eval()
    size = getattr(net, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    try:
        with torch.enable_grad():
            maps = shapes.forward_features(torch.empty(2, *size, device="meta"))
    except Exception as error:
        raise ReskdError(f"backbone {name!r} gives no feature map at {size[-1]} px: {error}; choose another") from error
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[1] != net.num_features:
        output = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ReskdError(
            f"backbone {name!r} gives {output} for 2 frames, and a map [2, {net.num_features}, h, w] is needed: choose a "
            "convolutional network, such as 'resnet50' or 'tf_efficientnet_lite0'"
        )
    parameters = dict(shapes.named_parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(maps.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
