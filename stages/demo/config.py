"""The config of `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.config.schema import Config, Positive


class DemoClips(Config):
    """Clips of each split; no handwriting is in two of them."""

    train: Positive
    val: Positive
    test: Positive


class DemoConfig(Config):
    """`pipeline.py demo`. The stages' configs are the files beside it, those of the nets in the folder `model`;
    `teacher`, `cache`, `baseline` and `distilled` hold keys to change in them."""

    output: Path
    model: Literal["tsm", "tsn", "slowonly", "swin"] = "tsm"
    seeds: Positive = Field(1, description="students of each kind, with seeds 0, 1, ...")
    unlabelled: bool = Field(False, description="students have the labels of a quarter of the clips; one is distilled from "
                                                "the others too")  # fmt: skip
    clips: DemoClips
    video_size: Positive = Field(description="px of the clips, which are square")
    video_frames: Positive
    teacher: dict[str, Any] = Field({})
    cache: dict[str, Any] = Field({})
    baseline: dict[str, Any] = Field({})
    distilled: dict[str, Any] = Field({})
