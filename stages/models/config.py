"""The configs of a model and of its first weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.config.schema import AnyPath, Config, Positive, formerly
from stages.models.architectures import ARCHITECTURES


class ModelConfig(Config):
    """A TSN with any backbone of timm, a TSM or SlowOnly with a ResNet of timm, a video network of torchvision, or a network
    of transformers."""

    arch: Literal[tuple(ARCHITECTURES)] = "tsn"
    backbone: str = Field("resnet50", description="name of a timm model; swin: swin3d_t, swin3d_s or swin3d_b; "
                          "torchvision_video: r2plus1d_18, s3d, mvit_v2_s and others; transformers: a model_type, such as "
                          "videomae")  # fmt: skip
    args: dict[str, Any] = Field({}, description="more arguments of the backbone, such as channels and layers; "
                                 "transformers: its config.json")  # fmt: skip
    num_classes: int | None = Field(None, gt=0, description="by default the number of the data set's classes")
    num_frames: Positive = Field(8, description="T, frames of one view")
    dropout: float = Field(0.5, ge=0, lt=1)
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="stochastic depth of the last block; linear from 0 at the first"
    )
    head_norm: bool = Field(
        False, description="tsn: the network's own norm between pooling and classifier (ConvNeXt and others) is part of "
        "the head. Without it the classifier takes the mean of the map")  # fmt: skip
    pooling: Literal["mean", "own"] = Field(
        "mean", description="mean: the classifier takes the mean of the map. own: it takes what the network's own classifier "
        "takes, such as a class token (tsn, torchvision_video, transformers)")  # fmt: skip
    shift_div: Positive = Field(8, description="tsm: 1/shift_div of the channels come from the next frame, and "
                                               "1/shift_div from the previous frame")  # fmt: skip
    rel_pos: Annotated[Literal["exact", "upstream"], formerly(seed="upstream")] = Field(
        "exact", description="swin, for maps smaller than the window. exact: each pair of positions has its own bias. "
        "upstream: the wrong bias that upstream's code takes, for weights that were trained with upstream")  # fmt: skip
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="of RGB in 0..1")
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


CheckpointFormat = Literal["auto", "reskd", "mmaction2", "rkd", "torchvision", "timm", "mit", "pytorchvideo"]


HeadPolicy = Literal["keep", "reinit", "drop"]


class InitConfig(Config):
    """Where a model's first weights come from."""

    source: Literal["scratch", "timm", "checkpoint"] = "scratch"
    path: AnyPath | None = Field(None, description="a checkpoint; a 3D model gets 2D weights inflated")
    format: CheckpointFormat = Field("auto", description="of the checkpoint; auto: recognised by its keys")
    part: Literal["student", "teacher"] = Field("student", description="rkd: which of the two networks in the file")
    head: HeadPolicy = Field("keep", description="if its classifier has other classes: keep is an error, reinit takes "
                                                 "a fresh one; drop always takes a fresh one")  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _path_means_checkpoint(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") is not None:
            return {"source": "checkpoint", **values}
        return values

    @model_validator(mode="after")
    def _path_iff_checkpoint(self) -> InitConfig:
        if (self.source == "checkpoint") != (self.path is not None):
            raise ValueError("`path` goes with `source: checkpoint` only, and `source: checkpoint` needs `path`")
        return self
