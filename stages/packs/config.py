"""The config of `pack`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import AnyPath, Config, OutputPath, Positive, Size
from stages.stream.config import LoaderConfig


class PackConfig(Config):
    """`pipeline.py pack`."""

    data: AnyPath = Field(description="a data set made by `prepare`")
    output: OutputPath = Field(description="the pack, a folder, or s3://bucket/NAME (gs://, az://)")
    cache: AnyPath | None = Field(
        None, description="a cache of this data set, made by `cache-teacher`, with the stored views"
    )
    views: Positive | None = Field(
        None, description="number of stored views, the first ones; default: all finished ones"
    )
    frames: Literal["crops", "all"] = Field(
        "crops",
        description="crops: the stored views, cut out and shrunk to `size`; all: every frame, whole, also for evaluation and "
        "fresh views",
    )
    size: Size = Field(
        112, description="px of the largest student: of crops, or of what frames must serve (see `height`)"
    )
    height: int | None = Field(None, ge=8, le=4096, description="px of a frame's shorter side; default: just enough to "
                               "enlarge no view's crop")  # fmt: skip
    quality: int = Field(90, ge=1, le=95, description="JPEG quality")
    psnr: float | None = Field(
        None, gt=0, le=60, description="dB: choose the lowest quality with this mean PSNR on a sample"
    )
    policy: ViewPolicy | None = Field(None, description="without a cache: views whose crops `height` must not "
                                                        "enlarge; null: the default policy")  # fmt: skip
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> PackConfig:
        if self.cache is None and self.frames == "crops":
            raise ValueError("frames: crops are those of a cache's stored views: give cache, or frames: all")
        if self.frames == "crops" and self.height is not None:
            raise ValueError(f"crops have the student's size, {self.size} px: leave height {self.height} out")
        if self.cache is None and self.views is not None:
            raise ValueError("views are stored views of a cache: give cache, too, or remove `views`")
        if self.cache is not None and self.policy is not None:
            raise ValueError("the cache has a policy of its own: remove `policy`, or the cache")
        if self.psnr is not None and "quality" in self.model_fields_set:
            raise ValueError(
                f"psnr {self.psnr} chooses the quality, but quality {self.quality} is given, too: give one of them"
            )
        return self
