"""Every config of the pipeline, as frozen pydantic models; `configfile.py` fills them from YAML and `--set a.b=c`.

An unknown key is an error; rules across fields are checked here too, so that a run never fails after an hour for what
its config already said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cache.view import ViewPolicy

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Size = Annotated[int, Field(ge=8, le=1024)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_deterministic(name: str, policy: ViewPolicy | None) -> None:
    if policy and (policy.jitter or policy.flip or policy.crop not in ("center", "three_crop", "full")):
        raise ValueError(f"{name} must be deterministic: jitter: false, flip: 0, crop: center, three_crop or full")


class ModelConfig(Config):
    """TSN over any timm backbone, TSM and SlowOnly over its ResNets, or torchvision's Video Swin."""

    arch: Literal["tsn", "tsm", "slowonly", "swin"] = "tsn"
    backbone: str = Field("resnet50", description="a model of timm; swin: swin3d_t, swin3d_s or swin3d_b")
    args: dict[str, Any] = Field({}, description="further arguments of that model, such as channels and layers")
    num_classes: int | None = Field(None, gt=0, description="from the data set's classes where not given")
    num_frames: Positive = Field(8, description="T, frames of one view")
    dropout: float = Field(0.5, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block; it rises linearly to it")
    shift_div: Positive = Field(8, description="tsm: 1/shift_div of the channels come from the next frame, as many "
                                               "from the one before")  # fmt: skip
    rel_pos: Literal["exact", "seed"] = Field("exact", description="swin, on maps smaller than its window: each pair's "
                                              "own position bias, or the seed's mistaken one for weights trained so")  # fmt: skip
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="of RGB in 0..1")
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


CheckpointFormat = Literal["auto", "reskd", "mmaction2", "rkd", "torchvision", "timm"]
HeadPolicy = Literal["keep", "reinit", "drop"]


class InitConfig(Config):
    """Where a model's first weights come from."""

    source: Literal["scratch", "timm", "checkpoint"] = "scratch"
    path: Path | None = Field(None, description="of a checkpoint; 2D weights are inflated where the model is 3D")
    format: CheckpointFormat = Field("auto", description="of the checkpoint; recognised by its keys where auto")
    part: Literal["student", "teacher"] = Field("student", description="rkd: which of the two nets in the container")
    head: HeadPolicy = Field("keep", description="keep: a classifier of other classes is an error; reinit: such a one "
                                                 "is replaced by a fresh one; drop: any is")  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _path_means_checkpoint(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") is not None:
            return {"source": "checkpoint", **values}
        return values

    @model_validator(mode="after")
    def _path_iff_checkpoint(self) -> InitConfig:
        if (self.source == "checkpoint") != (self.path is not None):
            raise ValueError("`path` goes with `source: checkpoint`, and only with it")
        return self


class LoaderConfig(Config):
    """Decoding in DataLoader workers. None of it changes what is computed, but for `window`, `streams`, and `render` by a
    grey level of a picture here and there."""

    workers: int | None = Field(None, ge=0, description="decoding processes; one a core (at most 16) where not given")
    prefetch: Positive = Field(4, description="batches that a worker decodes ahead")
    window: Positive = Field(16, description="blocks of 64 rows shuffled together; part of the order")
    streams: Positive = Field(64, description="parallel streams of an epoch; part of the order")
    resident: bool = Field(
        False, description="keep decoded clips, whole, in memory: for small data sets and few workers"
    )
    render: Literal["workers", "device"] = Field("workers", description="where frames of a pack are shrunk to the student's "
                                                 "size; device: where workers can't keep up with a GPU")  # fmt: skip


class TeacherConfig(Config):
    checkpoint: Path = Field(description="a .safetensors of train-student")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")
    batch_size: Positive = Field(16, description="clips of one forward; part of the cache's identity")
    compile: bool = False
    bn: Literal["running", "recalibrate"] = Field("running", description="BatchNorm statistics: those of the "
                                                  "checkpoint, or estimated anew on the views to be stored")  # fmt: skip


class FeaturesConfig(Config):
    """How feature maps are stored. Every part goes with every other; `float16` alone stands for the raw map."""

    codec: Literal["float16", "int8", "int4", "int3"] = Field("float16", description="int8, int4, int3: 255, 15 or 7 steps "
                                                              "of a range a channel, of the sample")  # fmt: skip
    dims: Positive | None = Field(None, description="keep so many directions of the channels, the first of their PCA")
    energy: float | None = Field(None, gt=0, lt=1, description="keep as many as hold this share of the variance")
    grid: tuple[Positive, Positive] | None = Field(None, description="h, w of the student's map: the least that gives "
                                                   "the same gradient, to students of that grid alone")  # fmt: skip
    time: Positive | None = Field(None, description="T' of the student's map, where the teacher's is a multiple of it")
    sample: Positive = Field(1024, description="clip·views that the basis and the ranges are estimated on; a fifth of "
                                               "the clips is held out, to measure the error")  # fmt: skip
    basis: Path | None = Field(None, description="a cache of the same teacher whose basis and ranges are taken")

    @model_validator(mode="before")
    @classmethod
    def _codec_alone(cls, values: Any) -> Any:
        return {"codec": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _one_width(self) -> FeaturesConfig:
        if self.dims is not None and self.energy is not None:
            raise ValueError("give dims or energy, not both")
        return self

    @property
    def estimated(self) -> bool:
        """Whether anything of it comes from a sample."""
        return self.codec != "float16" or self.has_basis

    @property
    def has_basis(self) -> bool:
        return self.dims is not None or self.energy is not None


class TargetsConfig(Config):
    logits: Literal["uint8", "float16"] = "uint8"
    features: FeaturesConfig | None = Field(FeaturesConfig(), description="null: store logits only")


class CacheConfig(Config):
    """`pipeline.py cache-teacher`."""

    data: Path = Field(description="a data set made by `prepare`")
    output: Path = Field(description="the cache, a folder NAME.zarr")
    teacher: TeacherConfig
    views: Positive = Field(8, description="V, stored views of every clip; can be raised later")
    policy: ViewPolicy = Field(default_factory=ViewPolicy, description="how a view is drawn")
    targets: TargetsConfig = TargetsConfig()
    loader: LoaderConfig = LoaderConfig()


class PackConfig(Config):
    """`pipeline.py pack`."""

    data: Path = Field(description="a data set made by `prepare`")
    output: Path = Field(description="the pack, a folder")
    cache: Path | None = Field(None, description="made by `cache-teacher` of this data set: its stored views")
    views: Positive | None = Field(None, description="the first so many of them; all finished ones where not given")
    frames: Literal["views", "all", "crops"] = Field(
        "views", description="those that any of these views needs; or every one, for evaluation and fresh views, too; or crops: "
        "the views themselves, cut out and shrunk to size")  # fmt: skip
    size: Size = Field(
        112, description="px of the largest student, which decides the height where none is given; of crops"
    )
    height: int | None = Field(None, ge=8, le=4096, description="px of a frame's shorter side; so that no crop of a view "
                               "is enlarged where not given")  # fmt: skip
    quality: int = Field(90, ge=1, le=95, description="of the JPEGs")
    psnr: float | None = Field(
        None, gt=0, le=60, description="dB: the lowest quality that has it on average of a sample"
    )
    policy: ViewPolicy | None = Field(None, description="whose crops aren't enlarged, where there is no cache; null: the "
                                                        "default")  # fmt: skip
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> PackConfig:
        if self.cache is None and self.frames != "all":
            raise ValueError(f"frames: {self.frames} are those of a cache's stored views: give cache, or frames: all")
        if self.frames == "crops" and self.height is not None:
            raise ValueError(f"crops have the student's size, {self.size} px: leave height {self.height} out")
        if self.cache is None and self.views is not None:
            raise ValueError("views are a cache's stored ones: give cache, too, or leave them out")
        if self.cache is not None and self.policy is not None:
            raise ValueError("the cache has its policy: remove `policy`, or the cache")
        if self.psnr is not None and "quality" in self.model_fields_set:
            raise ValueError(
                f"psnr {self.psnr} chooses the quality, and quality {self.quality} is given: give one of them"
            )
        return self


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


DISTILLED = ("logit_kl", "feature_mse", "logit_map_kl")  # the terms that need a teacher's targets


class OnlineTeacherConfig(Config):
    """The seed's way: the teacher runs in every training step, on the very view that the student sees."""

    mode: Literal["online"] = "online"
    checkpoint: Path = Field(description="a .safetensors of train-student or import-checkpoint")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")


class LossConfig(Config):
    """A weighted sum; a weight of 0 leaves a term out."""

    cross_entropy: Weight = 1.0
    binary_cross_entropy: Weight = 0.0
    logit_kl: Weight = 0.0
    feature_mse: Weight = 0.0
    logit_map_kl: Weight = 0.0
    temperature: float = Field(1.0, gt=0, description="of logit_kl and logit_map_kl")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of cross_entropy")
    random_label: bool = Field(False, description="cross_entropy takes one label of a clip of several, drawn anew each "
                                                  "epoch, as the seed does; else such a clip is an error")  # fmt: skip

    def weights(self) -> dict[str, float]:
        """name -> weight of every term that is in the sum."""
        names = ("cross_entropy", "binary_cross_entropy", *DISTILLED)
        return {name: getattr(self, name) for name in names if getattr(self, name) > 0}

    @model_validator(mode="after")
    def _some_term(self) -> LossConfig:
        if not self.weights():
            raise ValueError("every weight is 0: nothing to train on")
        return self


class OptimConfig(Config):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="for a global batch of `lr_batch`; scaled linearly to the real one")
    lr_batch: Positive = Field(64, description="clips")
    weight_decay: float = Field(0.05, ge=0, description="of which parameters: see groups")
    groups: Literal["matrices", "all", "tsm", "swin", "swin_seed"] = Field(
        "matrices",
        description="matrices: decay on weights, none on biases and norms; all: decay on everything; tsm: as matrices, "
        "biases at twice the rate; swin: decay on all but norms and position biases, the backbone at a tenth of the "
        "rate; swin_seed: the seed's, where the backbone's norms decay and its position bias keeps the full rate",
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
        distilled = [name for name in DISTILLED if getattr(self.losses, name) > 0]
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
        _check_deterministic("eval_policy", self.eval_policy)
        if self.render_via is not None and self.render_via < self.size:
            raise ValueError(f"render_via {self.render_via} must not be below size {self.size}")
        return self


class EvaluateConfig(Config):
    """`pipeline.py evaluate`."""

    checkpoint: Path
    data: Path
    pack: Path | None = Field(None, description="made by `pack` of `data`, with frames: all: frames come from it")
    output: Path | None = Field(None, description="NAME.json; NAME.classes.csv and NAME.confusion.png go beside it")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")
    policy: ViewPolicy | None = Field(None, description="the validation views of its training where not given")
    protocol: str = Field("1x1", pattern=r"^[1-9][0-9]?x[13]$", description="temporal clips x spatial crops of a video: "
                          "1x1 is the policy's own view, 2x3 the seed's twice_sample with three crops")  # fmt: skip
    average: Literal["prob", "logit", "feature"] = Field("prob", description="what is averaged over a video's views")
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    batch_size: Positive = Field(16, description="views of one forward")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> EvaluateConfig:
        _check_deterministic("policy", self.policy)
        if self.pack is not None and self.loader.resident:
            raise ValueError("a pack needs no decoded videos in memory: remove loader.resident, or the pack")
        return self


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


class DemoClips(Config):
    """Clips of each split; no handwriting is in two of them."""

    train: Positive
    val: Positive
    test: Positive


class DemoConfig(Config):
    """`pipeline.py demo`. The stages' configs are the files beside it, those of the nets in the folder `model`;
    `teacher`, `cache`, `baseline` and `distilled` hold keys to change in them."""

    output: Path
    model: Literal["tsm", "tsn", "slowonly", "swin"] = "tsm"
    seeds: Positive = Field(1, description="students of each kind, with seeds 0, 1, ...")
    unlabelled: bool = Field(False, description="students have the labels of a quarter of the clips; one is distilled from "
                                                "the others too")  # fmt: skip
    clips: DemoClips
    video_size: Positive = Field(description="px of the clips, which are square")
    video_frames: Positive
    teacher: dict[str, Any] = {}
    cache: dict[str, Any] = {}
    baseline: dict[str, Any] = {}
    distilled: dict[str, Any] = {}


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
        _check_deterministic("eval_policy", policy)
        if self.render_via is not None and self.render_via < self.size:
            raise ValueError(f"render_via {self.render_via} must not be below size {self.size}")
        return self
