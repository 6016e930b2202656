"""The config of `evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import AnyPath, Config, OutputPath, Positive, Size, check_deterministic
from stages.stream.config import LoaderConfig


class EvaluateConfig(Config):
    """`pipeline.py evaluate`."""

    checkpoint: AnyPath
    data: AnyPath
    pack: AnyPath | None = Field(
        None, description="a pack of `data`, made with frames: all; read instead of the videos"
    )
    output: OutputPath | None = Field(
        None, description="NAME.json; beside it NAME.answers.csv, NAME.classes.csv, NAME.confusion.png"
    )
    size: Size | None = Field(None, description="px; default: the size of its training")
    policy: ViewPolicy | None = Field(None, description="default: the validation views of its training")
    protocol: str = Field("1x1", pattern=r"^[1-9][0-9]?x[13]$", description="temporal clips x spatial crops of a video: "
                          "1x1 is the policy's own view, 2x3 is upstream's twice_sample with three crops")  # fmt: skip
    average: Literal["prob", "logit", "feature"] = Field("prob", description="what is averaged over a video's views")
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    batch_size: Positive = Field(16, description="views in one forward")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> EvaluateConfig:
        check_deterministic("policy", self.policy)
        if self.pack is not None and self.loader.resident:
            raise ValueError("a pack needs no decoded videos in memory: remove loader.resident, or the pack")
        return self
