"""The config of `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import Config, Positive, Size, check_deterministic
from stages.stream.config import LoaderConfig


class EvaluateConfig(Config):
    """`pipeline.py evaluate`."""

    checkpoint: Path
    data: Path
    pack: Path | None = Field(None, description="made by `pack` of `data`, with frames: all: frames come from it")
    output: Path | None = Field(None, description="NAME.json; NAME.classes.csv and NAME.confusion.png go beside it")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")
    policy: ViewPolicy | None = Field(None, description="the validation views of its training where not given")
    protocol: str = Field("1x1", pattern=r"^[1-9][0-9]?x[13]$", description="temporal clips x spatial crops of a video: "
                          "1x1 is the policy's own view, 2x3 the seed's twice_sample with three crops")  # fmt: skip
    average: Literal["prob", "logit", "feature"] = Field("prob", description="what is averaged over a video's views")
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    batch_size: Positive = Field(16, description="views of one forward")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> EvaluateConfig:
        check_deterministic("policy", self.policy)
        if self.pack is not None and self.loader.resident:
            raise ValueError("a pack needs no decoded videos in memory: remove loader.resident, or the pack")
        return self
