"""Video Swin (Liu et al. 2022, "Video Swin Transformer"): torchvision's, with a corrected position bias for small maps.

Attention adds a learned bias to each pair of positions in a window. The distance of the two positions selects the bias. If
the map is smaller than the window, as in the last stage below 224 px, the window shrinks to the map. torchvision and
upstream then take the first rows and columns of the whole window's table of pairs. Those belong to other pairs. Here every
pair keeps its own bias.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from cache.errors import ReskdError

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

COMMON = {"window_size": [8, 7, 7], "patch_size": [2, 4, 4]}
SWINS: dict[str, dict[str, Any]] = {
    "swin3d_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], **COMMON},
    "swin3d_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], **COMMON},
    "swin3d_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], **COMMON},
}


class ExactAttention(ShiftedWindowAttention3d):
    """Torchvision's attention, where each pair has its own bias in smaller windows too. Full windows compute the same."""

    def get_relative_position_bias(self, window_size: list[int]) -> Tensor:
        """The bias [1, heads, N, N] of a window of [d, h, w] = N positions, taken from the whole window's table."""
        d, h, w = window_size
        index = self.relative_position_index.view(*self.window_size, *self.window_size)
        index = index[:d, :h, :w, :d, :h, :w].flatten()
        bias = self.relative_position_bias_table[index].view(d * h * w, d * h * w, self.num_heads)
        return bias.permute(2, 0, 1).contiguous().unsqueeze(0)


ATTENTION = {"exact": ExactAttention, "upstream": ShiftedWindowAttention3d}


class Block(SwinTransformerBlock):
    """Torchvision's block. With `grad_checkpointing` it keeps only its input, and the backward pass runs it again."""

    def __init__(self, *args: Any, rel_pos: str, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "attn_layer": ATTENTION[rel_pos]})
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(super().forward, x, use_reentrant=False)
        return super().forward(x)


def build_swin(config: ModelConfig, pretrained: bool) -> SwinTransformer3d:
    """A Video Swin without its classifier. `config.args` replace sizes of the named Swin.

    Raises:
        ReskdError: the backbone isn't one of SWINS, an argument is unknown or doesn't fit, or `pretrained` is set.
    """
    if config.backbone not in SWINS:
        raise ReskdError(f"backbone {config.backbone!r} is not a Video Swin; choose {', '.join(SWINS)}")
    if pretrained:
        raise ReskdError(
            f"timm has no weights of the video backbone {config.backbone!r}: give the path of a checkpoint (init.path), "
            "or init.source: scratch"
        )
    net = SwinTransformer3d(
        **_sizes(config), stochastic_depth_prob=config.drop_path, block=partial(Block, rel_pos=config.rel_pos)
    )
    net.head = nn.Identity()
    return net


def encode_swin(backbone: SwinTransformer3d, clips: Tensor) -> Tensor:
    """Normalised clips [B, T, 3, H, W] -> feature map [B, T', h, w, D] after the last norm. T' is T / 2, rounded up."""
    patches = backbone.patch_embed(clips.transpose(1, 2))
    return backbone.norm(backbone.features(backbone.pos_drop(patches)))


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """The sizes of the named Swin, with those of `config.args` in their place."""
    sizes = SWINS[config.backbone]
    for name, value in config.args.items():
        if name not in sizes:
            raise ReskdError(f"args.{name} is no argument of a Swin; known: {', '.join(sizes)}")
        numbers = [value] if isinstance(sizes[name], int) else value
        if not isinstance(numbers, list | tuple) or not all(type(v) is int and v > 0 for v in numbers):
            raise ReskdError(f"args.{name} {value!r} must be made of whole numbers above 0, like {sizes[name]}")
    sizes = sizes | {name: list(v) if isinstance(v, list | tuple) else v for name, v in config.args.items()}
    depths, heads, width = sizes["depths"], sizes["num_heads"], sizes["embed_dim"]
    if not len(sizes["window_size"]) == len(sizes["patch_size"]) == 3:
        raise ReskdError(f"window_size {sizes['window_size']} and patch_size {sizes['patch_size']} must be [t, h, w]")
    if len(depths) != len(heads) or sum(depths) < 2:
        raise ReskdError(
            f"depths {depths} and num_heads {heads} must have one number per stage, and two blocks or more"
        )
    if any(width * 2**i % n for i, n in enumerate(heads)):
        raise ReskdError(
            f"num_heads {heads} must divide the stages' widths {[width * 2**i for i in range(len(heads))]}"
        )
    return sizes
