"""The map of each frame, out of any network of timm: convolutional, or a transformer whose output is a list of tokens."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.video_model import Encoded


def layout_of(net: nn.Module) -> str:
    """What `forward_features` returns: "NCHW" [N, D, h, w], "NHWC" [N, h, w, D], or "tokens" [N, n, D] with class tokens
    among them. `set_layout` has found it; a ResNet needs no search."""
    return getattr(net, "map_layout", "NCHW")


def encode_frames(net: nn.Module, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T, h, w, D] of each frame, in channels-last memory."""
    return _maps(net, _frames(clips))[0].unflatten(0, clips.shape[:2])


def encode_frames_pooled(net: nn.Module, clips: Tensor) -> Encoded:
    """The map of each frame, and the mean over the frames of what timm's own classifier takes (`forward_head`)."""
    maps, output = _maps(net, _frames(clips))
    pooled = mean_over_frames(net.forward_head(output, pre_logits=True), clips)
    return Encoded(maps.unflatten(0, clips.shape[:2]), pooled)


def mean_over_frames(pooled: Tensor, clips: Tensor) -> Tensor:
    """[B * T, P] -> [B, P], in float32 under autocast too, for clips [B, T, ...]."""
    return pooled.unflatten(0, clips.shape[:2]).mean(1, dtype=torch.promote_types(pooled.dtype, torch.float32))


def _frames(clips: Tensor) -> Tensor:
    return clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _maps(net: nn.Module, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The map [N, h, w, D], and what `forward_features` returns."""
    if layout_of(net) == "tokens":  # timm knows where the class and register tokens are
        output, maps = net.forward_intermediates(frames, indices=1, norm=True, output_fmt="NCHW")
        return maps[-1].permute(0, 2, 3, 1), output
    output = net.forward_features(frames)
    return (output if layout_of(net) == "NHWC" else output.permute(0, 2, 3, 1)), output


def size_arguments(net: nn.Module, args: dict) -> dict:
    """The argument that lets this kind of network take pictures of any size; none where timm has no such argument."""
    known = inspect.signature(type(net).__init__).parameters
    for name, value in (("dynamic_img_size", True), ("strict_img_size", False)):
        if name in known:
            return {} if name in args else {name: value}
    return {}


def set_layout(net: nn.Module, name: str, pooled: bool) -> list[str]:
    """Find out what the network returns, and note it on `net` (`map_layout`, and as `note_pooling`).

    `pooled`: timm's own pooling stands before the classifier. Returns the names of the parameters on which the map (and
    what is pooled) doesn't depend. A copy that has shapes but no data is run.
    Raises ReskdError, with the network's `name`, if it gives no map [N, h, w, num_features] at its usual size.
    """
    shapes = copy.deepcopy(net).to("meta").eval()
    size = usual_size(net)
    frames = torch.empty(2, 3, *size, device="meta")
    try:
        with torch.enable_grad():
            net.map_layout, maps = _find_layout(shapes, frames)
        shapes.map_layout = net.map_layout
        if not pooled:
            return unused_parameters(shapes, lambda: [maps])[0]
        return note_pooling(net, shapes, lambda: encode_frames_pooled(shapes, frames[:, None]))
    except Exception as error:
        raise ReskdError(f"backbone {name!r} gives no feature map at {size[-1]} px: {error}; choose another") from error


def usual_size(net: nn.Module) -> tuple[int, int]:
    """Height and width of the pictures that a network of timm is made for."""
    made_for = getattr(getattr(net, "patch_embed", None), "img_size", None)
    return tuple(made_for or getattr(net, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:])


def _find_layout(net: nn.Module, frames: Tensor) -> tuple[str, Tensor]:
    """What `forward_features` returns, as `layout_of`, and the map, its axes as they come."""
    output = net.forward_features(frames)
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if isinstance(output, Tensor) and output.dim() == 4:
        if output.shape[1] == net.num_features:
            return "NCHW", output
        if output.shape[3] == net.num_features:
            return "NHWC", output
    if isinstance(output, Tensor) and output.dim() == 3 and hasattr(net, "forward_intermediates"):
        _, (maps,) = net.forward_intermediates(frames, indices=1, norm=True, output_fmt="NCHW")
        if maps.dim() == 4 and maps.shape[1] == net.num_features:
            return "tokens", maps
        found = list(maps.shape)
    raise ValueError(f"it gives {found} for 2 frames, and a map of {net.num_features} channels is needed")


def note_pooling(net: nn.Module, shapes: nn.Module, encode: Callable[[], Encoded]) -> list[str]:
    """Note on `net` P (`pooled_features`) and what only its pooling depends on (`pooling_only`). Returns the names of the
    parameters on which neither the map nor what is pooled depends. `shapes`: a copy without data, which `encode` runs."""
    of_map, _ = unused_parameters(shapes, lambda: [encode().features])
    unused, (_, pooled) = unused_parameters(shapes, encode)
    net.pooled_features, net.pooling_only = pooled.shape[-1], sorted({*of_map} - {*unused})
    return unused


def unused_parameters(net: nn.Module, run: Callable[[], Iterable[Tensor]]) -> tuple[list[str], list[Tensor]]:
    """The names of the parameters on which no output of `run` depends, and the outputs. `net` and `run` have no data.

    `run` may return what was computed before, with gradients.
    """
    parameters = dict(net.named_parameters())
    with torch.enable_grad():
        outputs = list(run())
        total = sum(output.sum() for output in outputs)
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None], outputs
