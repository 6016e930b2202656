"""The table of architectures, and `build_model`. A new architecture is one entry in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.head_norm import take_head_norm
from stages.models.slowonly import build_slowonly, encode_volume
from stages.models.swin import build_swin, encode_swin
from stages.models.tsm import build_tsm
from stages.models.tsn import build_backbone, encode_frames
from stages.models.video_model import Head, VideoModel

if TYPE_CHECKING:  # the config reads this table
    from stages.models.config import ModelConfig

ARCHITECTURES = {  # arch -> the function that builds its backbone, and the function that runs the backbone on clips
    "tsn": (build_backbone, encode_frames),
    "tsm": (build_tsm, encode_frames),
    "slowonly": (build_slowonly, encode_volume),
    "swin": (build_swin, encode_swin),
}


def build_model(config: ModelConfig, pretrained: bool = False) -> VideoModel:
    """The model of a config, on the CPU, in train mode. Weights are random; with `pretrained` the backbone's are timm's.

    `config.num_classes` must not be None.

    Raises:
        ReskdError: the backbone doesn't exist, its arguments, `shift_div` or `head_norm` don't fit, or it has no
            pretrained weights.
    """
    assert config.num_classes is not None
    build, encode = ARCHITECTURES[config.arch]
    backbone = build(config, pretrained)
    norm = take_head_norm(backbone, config.backbone) if config.head_norm else None
    head = Head(backbone.num_features, config.num_classes, config.dropout, norm)
    return VideoModel(backbone, encode, head, num_frames=config.num_frames, mean=config.mean, std=config.std)
