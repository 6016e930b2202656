"""A video model: a backbone and a head; its move to a device; its cost."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cache.errors import ReskdError

FC_STD = 0.001  # standard deviation of the classifier's initial weights, as in upstream


class ModelOutput(NamedTuple):
    """logits [B, K], float32 under autocast too; features [B, T', h, w, D], the map that the head averages."""

    logits: Tensor
    features: Tensor


class Encoded(NamedTuple):
    """What a backbone with `pooling: own` gives of B clips."""

    features: Tensor  # [B, T', h, w, D]
    pooled: Tensor  # [B, P], what the network's own classifier takes: a class token, for example


class Head(nn.Module):
    """Mean over all positions and times, dropout, linear layer: [B, T', h, w, D] -> [B, K].

    With a `norm` over the channels, the mean of each frame is normalised before the mean over times. (A network for images
    that has such a norm scores each frame in this way.)
    With `takes_map` False the backbone pools: the head is dropout and a linear layer of its `pooled` [B, P].
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        dropout: float,
        norm: nn.LayerNorm | None = None,
        takes_map: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)
        self.norm, self.takes_map = norm, takes_map
        nn.init.normal_(self.fc.weight, std=FC_STD)
        nn.init.zeros_(self.fc.bias)

    @property
    def has_class_map(self) -> bool:
        """Whether the logits are the mean over the map of a linear classifier of each position."""
        return self.takes_map and self.norm is None

    def forward(self, features: Tensor, pooled: Tensor | None = None) -> Tensor:
        if pooled is not None:
            pooled = pooled.to(self.fc.weight.dtype)
        elif self.norm is None:
            pooled = features.mean((1, 2, 3), dtype=self.fc.weight.dtype)
        # bfloat16 would round a logit of 10 by up to 0.03, more than the cache's uint8 does, and would save no time.
        with torch.autocast(features.device.type, enabled=False):
            if pooled is None:
                pooled = self.norm(features.mean((2, 3), dtype=self.fc.weight.dtype)).mean(1)
            return self.fc(self.dropout(pooled))

    def at_positions(self, features: Tensor) -> Tensor:
        """What `fc` takes at each position for a class map [B, T', h, w, K]. The mean of the class map is the logits.

        So a norm takes its statistics from the mean of each frame, for all positions of the frame.
        """
        if self.norm is None:
            return features
        with torch.autocast(features.device.type, enabled=False):
            values = features.to(torch.promote_types(features.dtype, torch.float32))
            frame = values.mean((2, 3), keepdim=True)
            centred = values - frame.mean(-1, keepdim=True)
            scaled = centred * (frame.var(-1, unbiased=False, keepdim=True) + self.norm.eps).rsqrt() * self.norm.weight
            return scaled if self.norm.bias is None else scaled + self.norm.bias


class VideoModel(nn.Module):
    """A backbone, the function that runs it on normalised clips, and the head."""

    def __init__(
        self,
        backbone: nn.Module,
        encode: Callable[[nn.Module, Tensor], Tensor | Encoded],
        head: Head,
        *,
        num_frames: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        width: int | None = None,
        built_from: str | None = None,
    ) -> None:
        """`encode(backbone, clips [B, T, 3, H, W])` returns the map [B, T', h, w, D], or `Encoded`. `width` is D; None: that
        of the head's input. `mean` and `std` are of RGB in 0..1. `built_from`: the whole config as text; two models of one
        text differ in their weights alone."""
        super().__init__()
        self.built_from = built_from
        self.width = width or head.fc.in_features
        self.backbone, self.encode, self.head, self.num_frames = backbone, encode, head, num_frames
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, clips: Tensor) -> ModelOutput:
        """Clips uint8 [B, T, 3, H, W], RGB -> ModelOutput.

        Raises:
            ReskdError: the clips don't have `num_frames` frames.
        """
        encoded = self._encode(clips)
        if isinstance(encoded, Encoded):
            return ModelOutput(self.head(*encoded), encoded.features)
        return ModelOutput(self.head(encoded), encoded)

    def extract(self, clips: Tensor) -> Tensor:
        """The feature map [B, T', h, w, D], without logits."""
        encoded = self._encode(clips)
        return encoded.features if isinstance(encoded, Encoded) else encoded

    def _encode(self, clips: Tensor) -> Tensor | Encoded:
        assert clips.dtype == torch.uint8
        if clips.shape[1] != self.num_frames:  # a temporal shift would mix frames of different clips
            raise ReskdError(
                f"clips of {clips.shape[1]} frames for a model of num_frames {self.num_frames}: "
                "give the model and the view policy the same number"
            )
        return self.encode(self.backbone, (clips.to(self.mean.dtype) / 255 - self.mean) / self.std)


def to_device(model: VideoModel, device: torch.device) -> VideoModel:
    """Move the model to `device`, and give the weights of 2D and 3D convolutions the memory layout channels-last, in place.

    Convolutions are fast in that layout. On a CPU a training step of EfficientNet-Lite0 at 80 px takes 0.57 of the time,
    one of the demo's small nets 0.97.
    """
    return _channels_last(model.to(device))


def teacher_to_device(model: VideoModel, device: torch.device) -> VideoModel:
    """`to_device` for the teacher of a cache. On a CPU its layout stays: another one rounds the last bits otherwise, and a
    cache that exists must grow by the same numbers."""
    return to_device(model, device) if device.type == "cuda" else model.to(device)


def _channels_last(model: VideoModel) -> VideoModel:
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}  # Module.to would give all weights one layout
    for parameter in model.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
    return model


@dataclass(frozen=True)
class ModelStats:
    """The cost of a model for one clip.

    grid: [T', h, w] of the feature map. width: its channels D. parameters: their number.
    gmacs: 10^9 multiply-adds of convolutions, linear layers and attention. The literature calls them "GFLOPs" (one
        multiply-add counts once).
    """

    grid: tuple[int, int, int]
    width: int
    gmacs: float
    parameters: int


def model_stats(model: VideoModel, size: int) -> ModelStats:
    """The cost for one clip of size x size pixels, in eval mode. It is counted once for all models of one config.

    Raises ReskdError if the network takes no pictures of this size.
    """
    if (stats := _counted.get((model.built_from, size))) is None:
        stats = _count(model, size)
        if model.built_from is not None:
            _counted[model.built_from, size] = stats
    return stats


_counted: dict[tuple[str, int], ModelStats] = {}  # by the config and the size


def _on_meta(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta


def _count(model: VideoModel, size: int) -> ModelStats:
    """`model_stats`, counted on a copy that has shapes but no data."""
    tensors = (*model.parameters(), *model.buffers())
    without_data = {id(tensor): _on_meta(tensor) for tensor in tensors}  # what a copy has in its place
    shapes = copy.deepcopy(model, without_data).eval()
    clips = torch.empty(1, model.num_frames, 3, size, size, dtype=torch.uint8, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features = shapes.extract(clips)
    except ReskdError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # of the libraries' networks
        raise ReskdError(
            f"the network ({type(model.backbone).__name__}) can't take {model.num_frames} frames of {size} px: "
            f"{str(error).strip().rstrip('.') or type(error).__name__}; choose another size"
        ) from error
    macs = counter.get_total_flops() // 2 + model.head.fc.weight.numel()  # the head can't run: autocast has no "meta"
    return ModelStats(
        grid=tuple(features.shape[1:4]),
        width=features.shape[4],
        gmacs=macs / 1e9,
        parameters=sum(p.numel() for p in model.parameters()),
    )
