"""The config of `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import AnyPath, Config, OutputPath, Positive, Size, check_deterministic
from stages.stream.config import LoaderConfig

Seconds = Annotated[float, Field(gt=0)]


class PredictConfig(Config):
    """`pipeline.py predict`."""

    checkpoint: AnyPath
    inputs: tuple[AnyPath, ...] = Field(
        min_length=1, description="videos, folders, globs, data sets; -: paths on stdin"
    )
    output: OutputPath = Field(Path("-"), description="JSON lines, one a video; -: standard output")
    csv: OutputPath | None = Field(None, description="the same as a table")
    size: Size | None = Field(None, description="px; default: the size of its training")
    policy: ViewPolicy | None = Field(None, description="default: the validation views of its training")
    protocol: str = Field(
        "1x1", pattern=r"^[1-9][0-9]?x[13]$", description="temporal clips x spatial crops, of each window"
    )
    average: Literal["prob", "logit", "feature"] = Field("prob", description="what is averaged over views and windows")
    window: Seconds | None = Field(None, description="seconds; default: the whole video is one window")
    hop: Seconds | None = Field(None, description="seconds from one window to the next; default: the window")
    timeline: bool = Field(False, description="segments in time instead of one label a video")
    threshold: float = Field(0.5, ge=0, le=1, description="the least probability of a segment's class")
    least: float = Field(0.0, ge=0, description="seconds of the shortest segment")
    plot: OutputPath | None = Field(
        None, description="a folder: a picture of the probabilities over time for each video"
    )
    annotate: OutputPath | None = Field(None, description="an MP4: the one video of the input with its label drawn in")
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    batch_size: Positive = Field(16, description="views in one forward, of one or several videos")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> PredictConfig:
        check_deterministic("policy", self.policy)
        if self.window is None:
            for name in ("hop", "timeline", "plot"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs windows: give window, in seconds (--window 2)")
        elif self.hop is not None and self.hop > self.window:
            raise ValueError(f"hop is {self.hop:g} s and window {self.window:g} s: the net would not see what lies between "
                             "two windows. Give a hop that is no longer than the window")  # fmt: skip
        if self.annotate is not None and self.annotate.suffix.lower() != ".mp4":
            raise ValueError(f"annotate writes MP4: give a name that ends with .mp4, not {self.annotate.name!r}")
        return self

    @property
    def step(self) -> float | None:
        """Seconds from one window to the next."""
        return self.hop or self.window
