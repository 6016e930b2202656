"""The config of `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.config.schema import Config, Positive


class DemoClips(Config):
    """The number of clips of each split. No handwriting is in two splits."""

    train: Positive
    val: Positive
    test: Positive


class DemoConfig(Config):
    """The config of `pipeline.py demo`. The configs of the stages are beside its file, those of the networks in the folder
    `model`. `teacher`, `cache`, `baseline` and `distilled` replace keys in them."""

    output: Path
    model: Literal["tsm", "tsn", "slowonly", "swin"] = "tsm"
    seeds: Positive = Field(1, description="students of each kind, with seeds 0, 1, ...")
    epochs_times: Positive = Field(1, description="multiplies the students' epochs; with 2, what they make is in the folder "
                                                  "`output`/x2, and the teacher and its cache are those of `output`")  # fmt: skip
    side_by_side: bool = Field(True, description="students on labels alone are trained in a second process, beside the "
                                                 "others, if there is a second core")  # fmt: skip
    unlabelled: bool = Field(False, description="only a quarter of the clips have labels; one more student is distilled "
                                                "from all clips")  # fmt: skip
    clips: DemoClips
    video_size: Positive = Field(description="px of the clips, which are square")
    video_frames: Positive
    teacher: dict[str, Any] = Field({})
    cache: dict[str, Any] = Field({})
    baseline: dict[str, Any] = Field({})
    distilled: dict[str, Any] = Field({})
