"""The config of `pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import Config, Positive, Size
from stages.stream.config import LoaderConfig


class PackConfig(Config):
    """`pipeline.py pack`."""

    data: Path = Field(description="a data set made by `prepare`")
    output: Path = Field(description="the pack, a folder")
    cache: Path | None = Field(None, description="made by `cache-teacher` of this data set: its stored views")
    views: Positive | None = Field(None, description="the first so many of them; all finished ones where not given")
    frames: Literal["views", "all", "crops"] = Field(
        "views", description="those that any of these views needs; or every one, for evaluation and fresh views, too; or crops: "
        "the views themselves, cut out and shrunk to size")  # fmt: skip
    size: Size = Field(
        112, description="px of the largest student, which decides the height where none is given; of crops"
    )
    height: int | None = Field(None, ge=8, le=4096, description="px of a frame's shorter side; so that no crop of a view "
                               "is enlarged where not given")  # fmt: skip
    quality: int = Field(90, ge=1, le=95, description="of the JPEGs")
    psnr: float | None = Field(
        None, gt=0, le=60, description="dB: the lowest quality that has it on average of a sample"
    )
    policy: ViewPolicy | None = Field(None, description="whose crops aren't enlarged, where there is no cache; null: the "
                                                        "default")  # fmt: skip
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> PackConfig:
        if self.cache is None and self.frames != "all":
            raise ValueError(f"frames: {self.frames} are those of a cache's stored views: give cache, or frames: all")
        if self.frames == "crops" and self.height is not None:
            raise ValueError(f"crops have the student's size, {self.size} px: leave height {self.height} out")
        if self.cache is None and self.views is not None:
            raise ValueError("views are a cache's stored ones: give cache, too, or leave them out")
        if self.cache is not None and self.policy is not None:
            raise ValueError("the cache has its policy: remove `policy`, or the cache")
        if self.psnr is not None and "quality" in self.model_fields_set:
            raise ValueError(
                f"psnr {self.psnr} chooses the quality, and quality {self.quality} is given: give one of them"
            )
        return self
