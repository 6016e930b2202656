"""The config of `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.config.schema import Config, Positive


class PrepareConfig(Config):
    """`pipeline.py prepare`."""

    source: Path = Field(description="class folders of videos, a folder of videos, a CSV, a folder of tar shards, or "
                                     "kinetics, minik, sthv2, actnet, fcvid, mmaction, rawframes")  # fmt: skip
    output: Path
    annotations: Path | None = Field(None, description="as published; for a folder of videos a CSV path,label[,...]")
    videos: Path | None = Field(None, description="the folder of the videos, or of the folders of frames, of a list")
    split: Literal["train", "val", "test"] | None = Field(None, description="of annotations that hold several")
    with_offset: bool = Field(False, description="rawframes: lines are `dir start total label...`")
    frame_template: str | None = Field(None, description="rawframes: such as img_%05d.jpg, which is tried if not given")
    fps: float | None = Field(None, gt=0, le=1000, description="rawframes: frames a second of the clips; 25 if null")
    classes: Path | None = Field(None, description="their order: a file with one name a line or {name: number}, or a "
                                                   "prepared data set")  # fmt: skip
    limit: Positive | None = Field(None, description="clips, the first in the order of the shards; all where not given")
    disjoint_from: tuple[Path, ...] = Field((), description="data sets that should share no clip with this one")
    clips_per_shard: Positive = 1000
    max_shard_bytes: Positive = 1_000_000_000
    seed: int = Field(0, description="of the clips' order over the shards")
    workers: int | None = Field(None, ge=0, description="processes that look at the videos; one a core if not given")
