"""The config of `bench fidelity`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from stages.config.schema import Config, Positive
from stages.demo.config import DemoClips


class StudyConfig(Config):
    """The config of `pipeline.py bench fidelity`. The configs of the networks are beside its file."""

    output: Path
    seeds: Positive = Field(3, description="students of each arm, with seeds 0, 1, ...")
    compared_seeds: Positive | None = Field(None, description="more seeds, for the arms that differ only in views, "
                                                              "encodings and packs (not if quick)")  # fmt: skip
    clips: DemoClips
    video_size: Positive = Field(description="px of the clips, which are square")
    video_frames: Positive
    epochs: Positive = Field(description="of a student; some arms train 1/2, 2 and 4 times as long")
    teacher_epochs: Positive
    lr_labels: float = Field(0.007, gt=0, description="the best on validation for labels only")
    lr_distilled: float = Field(0.01, gt=0, description="the best on validation for distillation")
    jobs: Positive | None = Field(None, description="students trained at once, one core each; null: as many as cores")
    quick: bool = Field(False, description="a few encodings, without other schedules and the wide teacher")
