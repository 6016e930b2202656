"""The config of `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.config.schema import AnyPath, Config, OutputPath, Positive


class PrepareConfig(Config):
    """`pipeline.py prepare`."""

    source: AnyPath = Field(description="class folders of videos, a folder of videos, a CSV, a folder or URL of tar shards, "
                                        "or kinetics, minik, sthv2, actnet, fcvid, mmaction, rawframes")  # fmt: skip
    output: OutputPath = Field(description="the folder of the data set, or its URL")
    annotations: Path | None = Field(
        None, description="the published file; for a folder of videos a CSV path,label[,...]"
    )
    videos: Path | None = Field(None, description="the folder of a list's videos, or of its folders of frames")
    split: Literal["train", "val", "test"] | None = Field(
        None, description="which split, if the annotations hold several"
    )
    with_offset: bool = Field(False, description="rawframes: lines are `dir start total label...`")
    frame_template: str | None = Field(
        None, description="rawframes: file names, such as img_%05d.jpg; usual ones if null"
    )
    fps: float | None = Field(None, gt=0, le=1000, description="rawframes: frames per second of the clips; 25 if null")
    classes: AnyPath | None = Field(None, description="their order: a file with one name per line or {name: number}, a "
                                                   "prepared data set, or a teacher")  # fmt: skip
    limit: Positive | None = Field(
        None, description="take only the first clips in the order of the shards; all if null"
    )
    disjoint_from: tuple[AnyPath, ...] = Field((), description="data sets that should share no clip with this one")
    clips_per_shard: Positive = 1000
    max_shard_bytes: Positive = 1_000_000_000
    seed: int = Field(0, description="decides how the clips are spread over the shards")
    workers: int | None = Field(None, ge=0, description="processes that check the videos; one per core if null")
    check: Literal["quick", "full"] | None = Field(None, description="decode some frames of each video, or every frame; null: "
                                                   "every frame if that takes at most ten minutes")  # fmt: skip
