"""The config of `import-checkpoint`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import AnyPath, Config, OutputPath, Size, check_deterministic
from stages.models.config import CheckpointFormat, HeadPolicy, ModelConfig


class ImportConfig(Config):
    """`pipeline.py import-checkpoint`: converts a checkpoint of another program."""

    source: AnyPath = Field(description="a checkpoint of mmaction2, upstream (ResKD), torchvision, timm, MIT's TSM or "
                                        "pytorchvideo; or a folder of Hugging Face, or org/name on its hub")  # fmt: skip
    output: OutputPath = Field(description="a new .safetensors")
    model: ModelConfig | None = Field(None, description="a folder of Hugging Face says it itself")
    size: Size = Field(224, description="pixels of the model's square input; a folder of Hugging Face says it")
    classes: AnyPath | None = Field(None, description="their order: a file with one name per line, or a prepared data set; "
                                                   "the checkpoint's own names if null")  # fmt: skip
    format: CheckpointFormat = "auto"
    part: Literal["student", "teacher"] = Field(
        "student", description="rkd: which of the two networks in the container"
    )
    head: HeadPolicy = "keep"
    eval_policy: ViewPolicy | None = Field(None, description="views for evaluation; if null middle frames (slowonly, swin: the "
                                                             "middle clip, dense_1x for a file of mmaction2 1.x), centre "
                                                             "crop")  # fmt: skip
    render_via: Size | None = Field(None, description="render at this size, then shrink bilinearly without "
                                                      "antialiasing, as upstream does")  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> ImportConfig:
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output {self.output} must end in .safetensors")
        policy = self.eval_policy
        if policy is not None and self.model is not None and policy.num_frames != self.model.num_frames:
            raise ValueError(
                f"eval_policy.num_frames {policy.num_frames} and model.num_frames {self.model.num_frames} must be equal"
            )
        check_deterministic("eval_policy", policy)
        if self.render_via is not None and self.render_via < self.size:
            raise ValueError(f"render_via {self.render_via} must not be below size {self.size}")
        return self
