"""The architectures, and `build_model`, which makes a model of any of them. A new one is one entry of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.slowonly import build_slowonly, encode_volume
from stages.models.swin import build_swin, encode_swin
from stages.models.tsm import build_tsm
from stages.models.tsn import build_backbone, encode_frames
from stages.models.video_model import Head, VideoModel

if TYPE_CHECKING:  # the config reads this table
    from stages.models.config import ModelConfig

ARCHITECTURES = {  # arch -> its backbone, and the function that runs it on clips
    "tsn": (build_backbone, encode_frames),
    "tsm": (build_tsm, encode_frames),
    "slowonly": (build_slowonly, encode_volume),
    "swin": (build_swin, encode_swin),
}


def build_model(config: ModelConfig, pretrained: bool = False) -> VideoModel:
    """The model of a config, freshly initialised, on the CPU, in train mode; `pretrained` takes timm's weights.

    `num_classes`, which a config may leave to the data set, must be set by now.

    Raises:
        ReskdError: the backbone, its arguments, its pretrained weights or `shift_div` can't be had.
    """
    assert config.num_classes is not None
    build, encode = ARCHITECTURES[config.arch]
    backbone = build(config, pretrained)
    head = Head(backbone.num_features, config.num_classes, config.dropout)
    return VideoModel(backbone, encode, head, num_frames=config.num_frames, mean=config.mean, std=config.std)
