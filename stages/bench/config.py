"""The config of `bench fidelity`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from stages.config.schema import Config, Positive
from stages.demo.config import DemoClips


class StudyConfig(Config):
    """`pipeline.py bench fidelity`. The nets' configs are the files beside it."""

    output: Path
    seeds: Positive = Field(3, description="students of each arm, with seeds 0, 1, ...")
    compared_seeds: Positive | None = Field(None, description="of the arms that differ in views, encodings and packs alone, "
                                                              "where more are wanted (not if quick)")  # fmt: skip
    clips: DemoClips
    video_size: Positive = Field(description="px of the clips, which are square")
    video_frames: Positive
    epochs: Positive = Field(description="of a student; arms of other schedules train 1/2, 2 and 4 times as long")
    teacher_epochs: Positive
    lr_labels: float = Field(0.007, gt=0, description="the best on validation for labels alone")
    lr_distilled: float = Field(0.01, gt=0, description="the best on validation for distillation")
    jobs: Positive | None = Field(None, description="students trained at once, a core each; all cores if null")
    quick: bool = Field(False, description="a few encodings, without other schedules and the wide teacher")
