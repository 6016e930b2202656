"""The config of `bench real`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from cache.errors import ReskdError
from stages.config.file import changed_keys, load_config, save_config
from stages.config.schema import Config, Positive, Size

# What --quick changes.
QUICK_STUDY = ("quick=true", "output=runs/real-quick", "classes=5", "size=48", "teacher_size=96", "teacher_epochs=3",
               "lengths=[2]", "rates=[0.004]", "other_sizes=[]", "views=2", "seeds=1")  # fmt: skip


class RealConfig(Config):
    """The config of `pipeline.py bench real`. The configs of the nets and the cache are beside its file."""

    videos: Path = Field(description="the folder that the paths of `clips` are in")
    clips: Path = Field(description="a CSV file: path,label,source,split1[,split2,...]; a split is train or test")
    output: Path
    core_hours: float = Field(30, gt=0, description="parts of the study that don't fit are left out, and named")
    classes: Positive | None = Field(None, description="only the first ones; null: all")
    size: Size = Field(80, description="px of the students")
    other_sizes: tuple[Size, ...] = Field((112, 56), description="px of the best recipe's further students")
    teacher_size: Size = 224
    teacher_epochs: Positive = 12
    lengths: tuple[Positive, ...] = Field((5, 10, 20), description="epochs of students on labels alone; length 1 is the "
                                          "first one after which they gain less than `gain` points")  # fmt: skip
    gain: float = Field(2.0, description="points; one clip of the held-out ones is 0.6")
    rates: tuple[float, ...] = Field((0.002, 0.004, 0.008), description="learning rates for 64 clips; each way to train takes "
                                     "its best on held-out sources")  # fmt: skip
    views: Positive = Field(8, description="stored views of the screening and the claim")
    arms: tuple[str, ...] | None = Field(None, description="names of the ways to train that are screened; null: all")
    seeds: Positive = 2
    jobs: Positive | None = Field(None, description="nets trained at once, one core each; null: as many as cores")
    quick: bool = Field(False, description="a few ways to train, on one split")

    @model_validator(mode="after")
    def _fits(self) -> RealConfig:
        if list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths {list(self.lengths)} must rise")
        return self


# What may change in a rerun.
FREE_KEYS = ("videos", "clips", "output", "core_hours", "lengths", "gain", "rates", "arms", "seeds", "jobs")


def check_same_study(config: RealConfig) -> None:
    """Write the config into the study's folder. Raises ReskdError if the folder has a study with other nets or clips."""
    file = config.output / "config.yaml"
    if file.exists():
        lines = changed_keys(load_config(RealConfig, file), config, FREE_KEYS, ("the study has", "this config"))
        if lines:
            raise ReskdError(
                f"{config.output} holds another study:\n  " + "\n  ".join(lines) + "\ngive another --output"
            )
    save_config(config, file)
