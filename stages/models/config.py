"""What a model is, and where its first weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.config.schema import Config, Positive, formerly
from stages.models.architectures import ARCHITECTURES


class ModelConfig(Config):
    """TSN over any timm backbone, TSM and SlowOnly over its ResNets, or torchvision's Video Swin."""

    arch: Literal[tuple(ARCHITECTURES)] = "tsn"
    backbone: str = Field("resnet50", description="a model of timm; swin: swin3d_t, swin3d_s or swin3d_b")
    args: dict[str, Any] = Field({}, description="further arguments of that model, such as channels and layers")
    num_classes: int | None = Field(None, gt=0, description="from the data set's classes where not given")
    num_frames: Positive = Field(8, description="T, frames of one view")
    dropout: float = Field(0.5, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block; it rises linearly to it")
    shift_div: Positive = Field(8, description="tsm: 1/shift_div of the channels come from the next frame, as many "
                                               "from the one before")  # fmt: skip
    rel_pos: Annotated[Literal["exact", "upstream"], formerly(seed="upstream")] = Field(
        "exact", description="swin, on maps smaller than its window. exact: each pair of positions has its own bias. "
        "upstream: the bias that upstream's code takes by mistake, for weights that were trained with it")  # fmt: skip
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="of RGB in 0..1")
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


CheckpointFormat = Literal["auto", "reskd", "mmaction2", "rkd", "torchvision", "timm"]


HeadPolicy = Literal["keep", "reinit", "drop"]


class InitConfig(Config):
    """Where a model's first weights come from."""

    source: Literal["scratch", "timm", "checkpoint"] = "scratch"
    path: Path | None = Field(None, description="of a checkpoint; 2D weights are inflated where the model is 3D")
    format: CheckpointFormat = Field("auto", description="of the checkpoint; recognised by its keys where auto")
    part: Literal["student", "teacher"] = Field("student", description="rkd: which of the two nets in the container")
    head: HeadPolicy = Field("keep", description="keep: a classifier of other classes is an error; reinit: such a one "
                                                 "is replaced by a fresh one; drop: any is")  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _path_means_checkpoint(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") is not None:
            return {"source": "checkpoint", **values}
        return values

    @model_validator(mode="after")
    def _path_iff_checkpoint(self) -> InitConfig:
        if (self.source == "checkpoint") != (self.path is not None):
            raise ValueError("`path` goes with `source: checkpoint`, and only with it")
        return self
