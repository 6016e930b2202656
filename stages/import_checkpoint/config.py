"""The config of `import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import Config, Size, check_deterministic
from stages.models.config import CheckpointFormat, HeadPolicy, ModelConfig


class ImportConfig(Config):
    """`pipeline.py import-checkpoint`: a checkpoint of another program as one of ours."""

    source: Path = Field(description="a checkpoint of mmaction2, the seed, torchvision or timm")
    output: Path = Field(description="a new .safetensors")
    model: ModelConfig
    size: Size = Field(224, description="px of its input")
    classes: Path | None = Field(None, description="their order: a file with one name a line, or a prepared data set; "
                                                   "the checkpoint's own names where not given")  # fmt: skip
    format: CheckpointFormat = "auto"
    part: Literal["student", "teacher"] = Field("student", description="rkd: which of the two nets in the container")
    head: HeadPolicy = "keep"
    eval_policy: ViewPolicy | None = Field(None, description="its evaluation's views; middle frames (slowonly, swin: "
                                                             "the middle clip), centre crop if null")  # fmt: skip
    render_via: Size | None = Field(None, description="render at this size, then shrink bilinearly without "
                                                      "antialiasing, as the seed does")  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> ImportConfig:
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output {self.output} must end in .safetensors")
        policy = self.eval_policy
        if policy is not None and policy.num_frames != self.model.num_frames:
            raise ValueError(
                f"eval_policy.num_frames {policy.num_frames} and model.num_frames {self.model.num_frames} must be equal"
            )
        check_deterministic("eval_policy", policy)
        if self.render_via is not None and self.render_via < self.size:
            raise ValueError(f"render_via {self.render_via} must not be below size {self.size}")
        return self
