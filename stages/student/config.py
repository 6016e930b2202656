"""The config of one student, for `train-student`. cohort_config.py reads the configs of several from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cache.view import ViewPolicy
from stages.config.schema import AnyPath, Config, OutputPath, Positive, Size, check_deterministic, formerly
from stages.distill.config import LossConfig
from stages.models.config import InitConfig, ModelConfig
from stages.remote.outputs import working_folder
from stages.stream.config import LoaderConfig


class TrainData(Config):
    removed: ClassVar = {"mismatch": False}  # stored targets are joined with their own views
    train: AnyPath = Field(description="a data set made by `prepare`")
    val: AnyPath | None = Field(None, description="data set for validation, every `schedule.val_every` epochs")
    cache: AnyPath | None = Field(
        None, description="made by `cache-teacher`; without a cache: plain training on fresh views"
    )
    views: Positive | None = Field(None, description="how many stored views are replayed, the first ones; null: all")
    pack: AnyPath | None = Field(
        None, description="made by `pack` from `train`: frames are read from the pack, not from the videos"
    )
    val_pack: AnyPath | None = Field(None, description="made by `pack` from `val`, with frames: all")
    order_seed: int | None = Field(None, description="seed of the clips' order; null: `seed`")


class OnlineTeacherConfig(Config):
    """As upstream does it: the teacher runs in every training step, on the view that the student sees."""

    mode: Literal["online"] = "online"
    checkpoint: AnyPath = Field(description="a .safetensors of train-student or import-checkpoint")
    size: Size | None = Field(None, description="px; null: the size that the teacher was trained at")


class OptimConfig(Config):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="for a global batch of `lr_batch` clips")
    lr_batch: Positive = Field(64, description="clips")
    scale: Literal["linear", "sqrt", "none"] = Field(
        "linear", description="how the rate follows the global batch (clips of a micro-batch × accumulate × GPUs): as the batch, "
        "as its root (often better for adamw), or not at all"
    )  # fmt: skip
    weight_decay: float = Field(0.05, ge=0, description="for the parameters that `groups` names")
    groups: Annotated[
        Literal["matrices", "all", "tsm", "swin", "swin_upstream"], formerly(swin_seed="swin_upstream")
    ] = Field(
        "matrices",
        description="matrices: decay on weights, none on biases and norms; all: decay on everything; tsm: as matrices, "
        "biases at twice the rate; swin: decay on all but norms and position biases, the backbone at a tenth of the "
        "rate; swin_upstream: as upstream's code does it: the backbone's norms decay, its position bias has the full rate",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm")


class ScheduleConfig(Config):
    name: Literal["cosine", "step"] = "cosine"
    epochs: Positive = 50
    warmup_epochs: float | None = Field(
        None, ge=0, description="in which the rate rises; null: a twentieth of `epochs` for adamw, none for sgd"
    )
    milestones: tuple[Positive, ...] = Field((), description="step: epochs at which lr is multiplied by gamma")
    gamma: float = Field(0.1, gt=0, lt=1)
    by_epoch: bool = Field(False, description="the rate changes between epochs only, as upstream's does")
    val_every: Positive = Field(1, description="epochs")

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("`milestones` go with `name: step`, and only with it")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} must rise and lie below epochs {self.epochs}")
        return self


class TrainConfig(Config):
    """`pipeline.py train-student`: students, and without a cache teachers and baselines too."""

    output: OutputPath = Field(description="the run's folder; at a URL it is written behind the training")
    data: TrainData
    teacher: OnlineTeacherConfig | None = Field(
        None, description="a teacher in the training loop, instead of data.cache"
    )
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    size: Size = Field(112, description="px of the model's input")
    render_via: Size | None = Field(None, description="render at this size, then shrink bilinearly without "
                                                      "antialiasing, as upstream does")  # fmt: skip
    policy: ViewPolicy | None = Field(
        None, description="of the fresh views of each epoch; only without a cache (null: default)"
    )
    eval_policy: ViewPolicy | None = Field(
        None, description="of the views of validation; null: centre crop, middle frames"
    )
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch_size: Positive = Field(16, description="clips of one micro-batch (on one GPU)")
    accumulate: Positive = Field(1, description="micro-batches of one optimizer step")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights, which are evaluated; null: none"
    )
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    compile: bool = False
    grad_checkpointing: bool = Field(False, description="less memory, a third more compute: the backward pass runs "
                                                        "blocks again")  # fmt: skip
    seed: int = 0
    log_every: Positive = Field(20, description="optimizer steps")
    checkpoint_every: Positive = Field(
        500, description="optimizer steps; also at the end of an epoch, if 10 s have passed since the last one"
    )
    loader: LoaderConfig = LoaderConfig()

    @property
    def folder(self) -> Path:
        """The folder of this machine that the run writes into: `output`, unless that is a URL. Rank 0 alone uses it."""
        return working_folder(self.output)

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        with_teacher = self.losses.with_teacher
        if self.data.cache is None:
            if with_teacher and self.teacher is None:
                raise ValueError(f"losses.{with_teacher[0]} needs targets: set data.cache, or its weight to 0")
            if self.teacher is not None and not with_teacher:
                raise ValueError(
                    "a teacher in the loop that no loss reads: give losses.feature_mse or another a weight, or remove `teacher`"
                )
            if self.data.views is not None:
                raise ValueError("data.views are stored views: they go with data.cache")
        elif self.teacher is not None:
            raise ValueError("data.cache has the teacher's targets: remove `teacher`, or the cache")
        elif self.policy is not None:
            raise ValueError("with data.cache the stored views are replayed: remove `policy`, or the cache")
        if self.data.pack is not None and self.teacher is not None:
            raise ValueError(
                "a teacher in the loop reads the videos themselves: remove data.pack, or cache the teacher's targets"
            )
        if self.data.val_pack is not None and self.data.val is None:
            raise ValueError("data.val_pack is a pack of data.val: give data.val, too")
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
