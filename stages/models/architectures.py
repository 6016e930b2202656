"""The table of architectures, and `build_model`. A new architecture is one entry in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache.errors import ReskdError
from stages.models.head_norm import take_head_norm
from stages.models.slowonly import build_slowonly, encode_volume
from stages.models.swin import build_swin, encode_swin
from stages.models.timm_maps import encode_frames, encode_frames_pooled
from stages.models.torchvision_video import build_torchvision, encode_torchvision, encode_torchvision_pooled
from stages.models.transformers_net import build_transformers, encode_transformers, encode_transformers_pooled
from stages.models.tsm import build_tsm
from stages.models.tsn import build_backbone
from stages.models.video_model import Head, VideoModel

if TYPE_CHECKING:  # the config reads this table
    from stages.models.config import ModelConfig

ARCHITECTURES = {  # arch -> the function that builds its backbone, and the function that runs the backbone on clips
    "tsn": (build_backbone, encode_frames),
    "tsm": (build_tsm, encode_frames),
    "slowonly": (build_slowonly, encode_volume),
    "swin": (build_swin, encode_swin),
    "torchvision_video": (build_torchvision, encode_torchvision),
    "transformers": (build_transformers, encode_transformers),
}
OWN_POOLING = {  # with `pooling: own`: arch -> the function that also gives what the network's own classifier takes
    "tsn": encode_frames_pooled,
    "torchvision_video": encode_torchvision_pooled,
    "transformers": encode_transformers_pooled,
}


def build_model(config: ModelConfig, pretrained: bool = False) -> VideoModel:
    """The model of a config, on the CPU, in train mode. Weights are random; with `pretrained` the backbone's are timm's.

    `config.num_classes` must not be None.

    Raises:
        ReskdError: the backbone doesn't exist, its arguments, `shift_div`, `pooling` or `head_norm` don't fit, or it has
            no pretrained weights.
    """
    assert config.num_classes is not None
    build, encode = ARCHITECTURES[config.arch]
    own = config.pooling == "own"
    if own:
        if config.arch not in OWN_POOLING:
            raise ReskdError(
                f"model.pooling: own is for {', '.join(OWN_POOLING)}, not for {config.arch}: set it to mean"
            )
        if config.head_norm:
            raise ReskdError(
                "model.head_norm: true goes with model.pooling: mean: what is before the classifier is in `own`"
            )
        encode = OWN_POOLING[config.arch]
    backbone = build(config, pretrained)
    norm = take_head_norm(backbone, config.backbone) if config.head_norm else None
    width = backbone.num_features
    head = Head(backbone.pooled_features if own else width, config.num_classes, config.dropout, norm, not own)
    known = {"mean": config.mean, "std": config.std, "built_from": config.model_dump_json()}
    return VideoModel(backbone, encode, head, num_frames=config.num_frames, width=width, **known)
