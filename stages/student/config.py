"""The config of `train-student`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import Config, Positive, Size, check_deterministic, formerly
from stages.distill.config import LossConfig
from stages.models.config import InitConfig, ModelConfig
from stages.stream.config import LoaderConfig


class TrainData(Config):
    train: Path = Field(description="a data set made by `prepare`")
    val: Path | None = Field(None, description="validated on every `schedule.val_every` epochs")
    cache: Path | None = Field(None, description="made by `cache-teacher`; without it, plain training on fresh views")
    views: Positive | None = Field(None, description="replay the first so many stored views; all where not given")
    mismatch: bool = Field(False, description="for comparison only: fresh student views by `policy` under the stored "
                                              "targets, which are of other views")  # fmt: skip
    pack: Path | None = Field(None, description="made by `pack` of `train`: frames come from it, not from the videos")
    val_pack: Path | None = Field(None, description="made by `pack` of `val`, with frames: all")
    order_seed: int | None = Field(None, description="of the clips' order; `seed` where not given")


class OnlineTeacherConfig(Config):
    """The seed's way: the teacher runs in every training step, on the very view that the student sees."""

    mode: Literal["online"] = "online"
    checkpoint: Path = Field(description="a .safetensors of train-student or import-checkpoint")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")


class OptimConfig(Config):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="for a global batch of `lr_batch`; scaled linearly to the real one")
    lr_batch: Positive = Field(64, description="clips")
    weight_decay: float = Field(0.05, ge=0, description="of which parameters: see groups")
    groups: Annotated[
        Literal["matrices", "all", "tsm", "swin", "swin_upstream"], formerly(swin_seed="swin_upstream")
    ] = Field(
        "matrices",
        description="matrices: decay on weights, none on biases and norms; all: decay on everything; tsm: as matrices, "
        "biases at twice the rate; swin: decay on all but norms and position biases, the backbone at a tenth of the "
        "rate; swin_upstream: as upstream's code does it: the backbone's norms decay, its position bias has the full rate",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm")


class ScheduleConfig(Config):
    name: Literal["cosine", "step"] = "cosine"
    epochs: Positive = 50
    warmup_epochs: float = Field(0.0, ge=0)
    milestones: tuple[Positive, ...] = Field((), description="step: epochs at which lr is multiplied by gamma")
    gamma: float = Field(0.1, gt=0, lt=1)
    by_epoch: bool = Field(False, description="the rate changes between epochs only, as the seed's does")
    val_every: Positive = Field(1, description="epochs")

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("`milestones` go with `name: step`, and only with it")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} must rise and lie below epochs {self.epochs}")
        return self


class TrainConfig(Config):
    """`pipeline.py train-student`: students, and without a cache teachers and baselines too."""

    output: Path = Field(description="the run's folder")
    data: TrainData
    teacher: OnlineTeacherConfig | None = Field(None, description="in the loop, instead of data.cache")
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    size: Size = Field(112, description="px of the model's input")
    render_via: Size | None = Field(None, description="render at this size, then shrink bilinearly without "
                                                      "antialiasing, as the seed does")  # fmt: skip
    policy: ViewPolicy | None = Field(None, description="fresh views each epoch; only without a cache (null: default)")
    eval_policy: ViewPolicy | None = Field(None, description="validation's views; centre crop, middle frames if null")
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch_size: Positive = Field(16, description="clips of one micro-batch (on one GPU)")
    accumulate: Positive = Field(1, description="micro-batches of one optimizer step")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights (evaluated when given)")
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    compile: bool = False
    grad_checkpointing: bool = Field(False, description="less memory for a third more compute: blocks are run again "
                                                        "in the backward pass")  # fmt: skip
    seed: int = 0
    log_every: Positive = Field(20, description="optimizer steps")
    checkpoint_every: Positive = Field(500, description="optimizer steps; each epoch's end too")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        distilled = self.losses.distilled
        if self.data.cache is None:
            if distilled and self.teacher is None:
                raise ValueError(f"losses.{distilled[0]} needs targets: set data.cache, or its weight to 0")
            if self.teacher is not None and not distilled:
                raise ValueError(
                    "a teacher in the loop that no loss reads: set losses.feature_mse or another, or remove it"
                )
            if self.data.views is not None or self.data.mismatch:
                raise ValueError("data.views and data.mismatch are about stored views: each goes with data.cache")
        elif self.teacher is not None:
            raise ValueError("data.cache has the teacher's targets: remove `teacher`, or the cache")
        elif (self.policy is not None) != self.data.mismatch:
            raise ValueError("with data.cache the stored views are replayed: remove `policy` (or set data.mismatch)")
        if self.data.pack is not None and self.teacher is not None:
            raise ValueError(
                "a teacher in the loop looks at the videos in full: remove data.pack, or cache the teacher"
            )
        if self.data.val_pack is not None and self.data.val is None:
            raise ValueError("data.val_pack is a pack of data.val: give that, too")
        if (self.data.pack or self.data.val_pack) and self.loader.resident:
            raise ValueError("a pack needs no decoded videos in memory: remove loader.resident, or the pack")
        for name in ("policy", "eval_policy"):
            policy = getattr(self, name)
            if policy is not None and policy.num_frames != self.model.num_frames:
                raise ValueError(
                    f"{name}.num_frames {policy.num_frames} and model.num_frames {self.model.num_frames} must be equal"
                )
        check_deterministic("eval_policy", self.eval_policy)
        if self.render_via is not None and self.render_via < self.size:
            raise ValueError(f"render_via {self.render_via} must not be below size {self.size}")
        return self
