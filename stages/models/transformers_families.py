"""The networks of Hugging Face's transformers that this program takes, by their `model_type`.

The classes are named in this table, and nothing else is looked up: no code of a checkpoint is ever imported.

| model_type                     | a clip is read      | its map                     | what its own classifier takes             |
|--------------------------------|---------------------|-----------------------------|-------------------------------------------|
| videomae                       | whole               | a time for each tubelet     | norm of the mean, or the first token      |
| timesformer                    | whole               | a time for each frame       | class token                               |
| vivit                          | whole               | a time for each tubelet     | class token                               |
| vjepa2                         | whole               | a time for each tubelet     | its attentive pooler                      |
| vit, deit                      | each frame alone    | patches of each frame       | class token                               |
| dinov2, dinov2_with_registers  | each frame alone    | patches of each frame       | class token and mean of the patches       |
| dinov3_vit                     | each frame alone    | patches of each frame       | (it has no classifier)                    |
| convnext, convnextv2           | each frame alone    | its last map                | norm of the mean                          |

Class, distillation and register tokens are not in the map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import ReskdError

Grid = tuple[int, int, int]  # T, H, W of the pixels


@dataclass(frozen=True)
class Family:
    """One kind of network.

    encoder: the class without a classifier. classifier: the class with one, whose attribute `inner` is the encoder; None:
        the library has none.
    to_map: (its config, its last hidden state, T, H, W of the pixels) -> map [N, T', h, w, D]. N are clips if `video`, else
        frames, with T' = 1.
    pool: (the network with a classifier, its encoder's output) -> [N, P], what the classifier takes.
    options: arguments of the encoder's forward. Here: positions are interpolated for other sizes.
    set_grid: (the network, T, H, W of the pixels), for networks that take the grid of patches from their config, whatever
        the clip is: it tells them that of the clip.
    fixed_frames: the key of the config with the number of frames, where no other number will do.
    left_out: parts of files that the map doesn't depend on.
    """

    encoder: str
    classifier: str | None
    inner: str
    to_map: Callable[[Any, Tensor, Grid], Tensor]
    pool: Callable[[nn.Module, Any], Tensor]
    video: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    set_grid: Callable[[nn.Module, Grid], None] = lambda net, pixels: None
    fixed_frames: str | None = None
    stride: int = 1  # frames from one frame of a clip to the next, as published networks of this kind were trained
    left_out: tuple[str, ...] = ("classifier", "pooler", "decoder")


def patch_side(config: Any) -> int:
    """The pixels of a patch's side."""
    size = getattr(config, "tubelet_size", None)
    size = size if isinstance(size, list | tuple) else config.patch_size
    return size[-1] if isinstance(size, list | tuple) else size


def tubelet_length(config: Any) -> int:
    """The frames that become one time of the map."""
    size = getattr(config, "tubelet_size", 1)
    return size[0] if isinstance(size, list | tuple) else size


def _patches(extra: int) -> Callable[[Any, Tensor, Grid], Tensor]:
    """Tokens [N, extra + registers + n, D], of which n are patches in the order of time, row, column."""

    def to_map(config: Any, tokens: Tensor, pixels: Grid) -> Tensor:
        (frames, height, width), side = pixels, patch_side(config)
        tokens = tokens[:, extra + getattr(config, "num_register_tokens", 0) :]
        return tokens.unflatten(1, (frames // tubelet_length(config), height // side, width // side))

    return to_map


def _timesformer_map(config: Any, tokens: Tensor, pixels: Grid) -> Tensor:
    """The order of its tokens is class, then row, column, time."""
    (frames, height, width), side = pixels, patch_side(config)
    return tokens[:, 1:].unflatten(1, (height // side, width // side, frames)).permute(0, 3, 1, 2, 4)


def _convolutional_map(config: Any, maps: Tensor, pixels: Grid) -> Tensor:
    return maps.permute(0, 2, 3, 1)[:, None]


def _timesformer_grid(net: nn.Module, pixels: Grid) -> None:
    """Its layers share the config, and take the frames and the patches of a row from it."""
    frames, _, width = pixels
    if (net.config.num_frames, net.config.image_size) != (frames, width):
        net.config.num_frames, net.config.image_size = frames, width


def _vjepa2_grid(net: nn.Module, pixels: Grid) -> None:
    """Its layers number rows and columns by the side of a square grid. Raises ReskdError for clips that aren't square."""
    _, height, width = pixels
    if height != width:
        raise ReskdError(f"vjepa2 takes square clips, and these are {width}x{height} px: crop them to a square")
    side = width // patch_side(net.config)
    for module in net.modules():
        if getattr(module, "grid_size", side) != side:
            module.grid_size = side


def _class_token(net: nn.Module, output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def _class_token_and_mean(net: nn.Module, output: Any) -> Tensor:
    tokens = output.last_hidden_state
    patches = tokens[:, 1 + getattr(net.config, "num_register_tokens", 0) :]
    return torch.cat([tokens[:, 0], patches.mean(1)], 1)


def _videomae_pool(net: nn.Module, output: Any) -> Tensor:
    tokens = output.last_hidden_state
    return tokens[:, 0] if net.fc_norm is None else net.fc_norm(tokens.mean(1))


def _normed_mean(net: nn.Module, output: Any) -> Tensor:
    return output.pooler_output


def _attentive_pool(net: nn.Module, output: Any) -> Tensor:
    return net.pooler(output.last_hidden_state)


ANY_SIZE = {"interpolate_pos_encoding": True}
FAMILIES = {
    "videomae": Family("VideoMAEModel", "VideoMAEForVideoClassification", "videomae", _patches(0), _videomae_pool, True,
                       fixed_frames="num_frames", stride=4,
                       left_out=("classifier", "fc_norm", "decoder", "encoder_to_decoder", "mask_token")),
    "timesformer": Family("TimesformerModel", "TimesformerForVideoClassification", "timesformer", _timesformer_map,
                          _class_token, True, set_grid=_timesformer_grid, stride=32),
    "vivit": Family("VivitModel", "VivitForVideoClassification", "vivit", _patches(1), _class_token, True,
                    fixed_frames="num_frames", stride=2),
    "vjepa2": Family("VJEPA2Model", "VJEPA2ForVideoClassification", "vjepa2", _patches(0), _attentive_pool, True,
                     {"skip_predictor": True}, _vjepa2_grid, stride=4, left_out=("classifier", "pooler", "predictor")),
    "vit": Family("ViTModel", "ViTForImageClassification", "vit", _patches(1), _class_token, options=ANY_SIZE),
    "deit": Family("DeiTModel", "DeiTForImageClassification", "deit", _patches(2), _class_token, options=ANY_SIZE),
    "dinov2": Family("Dinov2Model", "Dinov2ForImageClassification", "dinov2", _patches(1), _class_token_and_mean),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification",
                                    "dinov2_with_registers", _patches(1), _class_token_and_mean),
    "dinov3_vit": Family("DINOv3ViTModel", None, "", _patches(1), _class_token),
    "convnext": Family("ConvNextModel", "ConvNextForImageClassification", "convnext", _convolutional_map, _normed_mean),
    "convnextv2": Family("ConvNextV2Model", "ConvNextV2ForImageClassification", "convnextv2", _convolutional_map,
                         _normed_mean),
}  # fmt: skip
