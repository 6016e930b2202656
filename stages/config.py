"""Every config of the pipeline, as frozen pydantic models: YAML plus `--set a.b=c`, checked before any work.

An unknown key is an error that names the key it may have been meant for; rules across fields are checked here too,
so that a run never fails after an hour for what its config already said.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache.errors import ReskdError
from cache.store import write_atomically
from cache.view import ViewPolicy

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Size = Annotated[int, Field(ge=8, le=1024)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Config):
    """A TSN or TSM over any timm ResNet."""

    arch: Literal["tsn", "tsm"] = "tsn"
    backbone: str = Field("resnet50", description="name of a timm ResNet")
    args: dict[str, Any] = Field({}, description="further arguments of the timm model, such as channels and layers")
    num_classes: int | None = Field(None, gt=0, description="from the data set's classes where not given")
    num_frames: Positive = Field(8, description="T, frames of one view")
    dropout: float = Field(0.5, ge=0, lt=1)
    shift_div: Positive = Field(8, description="tsm: 1/shift_div of the channels come from the next frame, as many "
                                               "from the one before")  # fmt: skip
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="of RGB in 0..1")
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class InitConfig(Config):
    """Where a model's first weights come from."""

    source: Literal["scratch", "timm", "checkpoint"] = "scratch"
    path: Path | None = Field(None, description="checkpoint: a .safetensors of an earlier run")

    @model_validator(mode="after")
    def _path_iff_checkpoint(self) -> InitConfig:
        if (self.source == "checkpoint") != (self.path is not None):
            raise ValueError("`path` goes with `source: checkpoint`, and only with it")
        return self


class LoaderConfig(Config):
    """Decoding in DataLoader workers. None of it changes what is computed, but for `window` and `streams`."""

    workers: int | None = Field(None, ge=0, description="decoding processes; one a core (at most 16) where not given")
    prefetch: Positive = Field(4, description="batches that a worker decodes ahead")
    window: Positive = Field(16, description="blocks of 64 rows shuffled together; part of the order")
    streams: Positive = Field(64, description="parallel streams of an epoch; part of the order")


class TeacherConfig(Config):
    checkpoint: Path = Field(description="a .safetensors of train-student")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")
    batch_size: Positive = Field(16, description="clips of one forward; part of the cache's identity")
    compile: bool = False


class TargetsConfig(Config):
    logits: Literal["uint8", "float16"] = "uint8"
    features: Literal["float16"] | None = Field("float16", description="null: store logits only")


class CacheConfig(Config):
    """`pipeline.py cache-teacher`."""

    data: Path = Field(description="a data set made by `prepare`")
    output: Path = Field(description="the cache, a folder NAME.zarr")
    teacher: TeacherConfig
    views: Positive = Field(8, description="V, stored views of every clip; can be raised later")
    policy: ViewPolicy = Field(default_factory=ViewPolicy, description="how a view is drawn")
    targets: TargetsConfig = TargetsConfig()
    loader: LoaderConfig = LoaderConfig()


class TrainData(Config):
    train: Path = Field(description="a data set made by `prepare`")
    val: Path | None = Field(None, description="validated on every `schedule.val_every` epochs")
    cache: Path | None = Field(None, description="made by `cache-teacher`; without it, plain training on fresh views")
    views: Positive | None = Field(None, description="replay the first so many stored views; all where not given")


class LossConfig(Config):
    """A weighted sum; a weight of 0 leaves a term out."""

    cross_entropy: Weight = 1.0
    binary_cross_entropy: Weight = 0.0
    logit_kl: Weight = 0.0
    feature_mse: Weight = 0.0
    temperature: float = Field(1.0, gt=0, description="of logit_kl")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of cross_entropy")

    def weights(self) -> dict[str, float]:
        """name -> weight of every term that is in the sum."""
        names = ("cross_entropy", "binary_cross_entropy", "logit_kl", "feature_mse")
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
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm")


class ScheduleConfig(Config):
    name: Literal["cosine", "step"] = "cosine"
    epochs: Positive = 50
    warmup_epochs: float = Field(0.0, ge=0)
    milestones: tuple[Positive, ...] = Field((), description="step: epochs at which lr is multiplied by gamma")
    gamma: float = Field(0.1, gt=0, lt=1)
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
    seed: int = 0
    log_every: Positive = Field(20, description="optimizer steps")
    checkpoint_every: Positive = Field(500, description="optimizer steps; each epoch's end too")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        distilled = [name for name in ("logit_kl", "feature_mse") if getattr(self.losses, name) > 0]
        if self.data.cache is None:
            if distilled:
                raise ValueError(f"losses.{distilled[0]} needs targets: set data.cache, or its weight to 0")
            if self.data.views is not None:
                raise ValueError("data.views counts stored views: it goes with data.cache")
        elif self.policy is not None:
            raise ValueError("with data.cache the stored views are replayed: remove `policy`")
        for name in ("policy", "eval_policy"):
            policy = getattr(self, name)
            if policy is not None and policy.num_frames != self.model.num_frames:
                raise ValueError(
                    f"{name}.num_frames {policy.num_frames} and model.num_frames {self.model.num_frames} must be equal"
                )
        if self.eval_policy is not None and (self.eval_policy.jitter or self.eval_policy.flip):
            raise ValueError("eval_policy must be deterministic: jitter: false, flip: 0")
        if self.render_via is not None and self.render_via < self.size:
            raise ValueError(f"render_via {self.render_via} must not be below size {self.size}")
        return self


class EvaluateConfig(Config):
    """`pipeline.py evaluate`."""

    checkpoint: Path
    data: Path
    output: Path | None = Field(None, description="JSON")
    size: Size | None = Field(None, description="px; the size it was trained at where not given")
    policy: ViewPolicy | None = Field(None, description="the validation views of its training where not given")
    amp: Literal["auto", "off"] = Field("auto", description="auto: bfloat16 autocast on CUDA")
    batch_size: Positive = 16
    loader: LoaderConfig = LoaderConfig()


class PrepareConfig(Config):
    """`pipeline.py prepare`."""

    source: Path = Field(description="class folders of videos, a folder of videos, a CSV, or a folder of tar shards")
    output: Path
    annotations: Path | None = Field(None, description="a CSV path,label[,label...] for a folder of videos")
    classes: Path | None = Field(None, description="their order: a file with one name a line, or a prepared data set")
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
    """`pipeline.py demo`. The stages' configs are the files beside it; `teacher`, `cache`, `baseline` and `distilled`
    hold keys to change in them."""

    output: Path
    seeds: Positive = Field(1, description="students of each kind, with seeds 0, 1, ...")
    clips: DemoClips
    video_size: Positive = Field(description="px of the clips, which are square")
    video_frames: Positive
    teacher: dict[str, Any] = {}
    cache: dict[str, Any] = {}
    baseline: dict[str, Any] = {}
    distilled: dict[str, Any] = {}


C = TypeVar("C", bound=Config)


def load_config(model: type[C], file: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file, apply `a.b=c` overrides (values are YAML) in order, validate.

    Raises ReskdError naming each offending key, its value, and the nearest known key.
    """
    values: Any = {}
    if file is not None:
        try:
            values = yaml.safe_load(Path(file).read_text()) or {}
        except OSError as error:
            raise ReskdError(f"config {file}: {error.strerror}; give an existing file with --config") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ReskdError(f"config {file} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ReskdError(f"config {file} must be a mapping of keys to values, but is a {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        where = f"config {file}" if file is not None else "config"
        raise ReskdError(f"{where}:\n" + "\n".join(_explain(model, e) for e in error.errors())) from None


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config, defaults included, as YAML that `load_config` reads back to an equal one."""
    write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ReskdError(f"--set {override!r} is not of the form key=value (such as --set optim.lr=0.01)")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ReskdError(f"--set {override}: {parent!r} is a value and has no keys below it")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReskdError(f"--set {override}: the value is not YAML: {error}") from error


def _explain(model: type[Config], error: dict) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"  {'.'.join(path)}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"  {'.'.join(path)}: missing; set it in the config or with --set {'.'.join(path)}=..."
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if path and not isinstance(given, dict) else ""
    return f"  {'.'.join(path) or model.__name__}: {message}{shown}"


def _fields_at(model: Any, path: Sequence[str]) -> list[str]:
    """Names of the keys that the (sub-)config at `path` knows."""
    for part in path:
        hints = typing.get_type_hints(model)
        options = [hints.get(part), *typing.get_args(hints.get(part))]
        found = [o for o in options if dataclasses.is_dataclass(o) or hasattr(o, "model_fields")]
        if not found:  # pydantic names the class of a union's member in the location
            continue
        model = found[0]
    return [f.name for f in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else list(model.model_fields)
