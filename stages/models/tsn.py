"""TSN (Wang et al. 2016, "Temporal Segment Networks"): a 2D ResNet of timm on every frame, averaged by the head."""

import difflib

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor

from cache.errors import ReskdError


def build_resnet(name: str, args: dict, pretrained: bool) -> ResNet:
    """A ResNet of timm without its classifier; `args` go to `timm.create_model` (lists, as YAML has them, as tuples).

    Raises:
        ReskdError: timm has no ResNet of this name, refuses an argument, or can't give its pretrained weights.
    """
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(module="resnet"), n=3, cutoff=0.5)
        raise ReskdError(
            f"backbone {name!r} is not a model of timm {timm.__version__}; try {', '.join(near) or 'resnet50'}"
        )
    try:
        net = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **args)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError, LookupError) as error:
        raise ReskdError(f"timm can't build the backbone {name!r} with args {args}: {error}; correct `args`") from error
    if not isinstance(net, ResNet):
        raise ReskdError(f"backbone {name!r} is a {type(net).__name__}, not a ResNet; choose one like 'resnet50'")
    return _pretrained(name, args) if pretrained else net


def _pretrained(name: str, args: dict) -> ResNet:
    try:  # whatever keeps the weights away (network, disk, other widths), the remedy is the same
        return timm.create_model(name, pretrained=True, num_classes=0, global_pool="", **args)
    except Exception as error:
        raise ReskdError(
            f"timm's pretrained weights of the backbone {name!r} (args {args}) can't be had: {type(error).__name__}: "
            f"{error}; where the network is missing, download them once on another machine and copy its Hugging Face "
            "cache (HF_HOME), or start from a local checkpoint, or from no weights"
        ) from error


def encode_frames(backbone: ResNet, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T, h, w, D], frame by frame, in channels-last memory."""
    frames = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    maps = backbone.forward_features(frames)
    return maps.permute(0, 2, 3, 1).unflatten(0, clips.shape[:2])
