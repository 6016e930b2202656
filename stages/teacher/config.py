"""The config of `cache-teacher`: the teacher, its views, and how its targets are stored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cache.codecs import CODECS, codec_of
from cache.view import ViewPolicy
from stages.config.schema import AnyPath, Config, OutputPath, Positive, Size
from stages.stream.config import LoaderConfig
from stages.teacher.hadamard import hadamard


class TeacherConfig(Config):
    checkpoint: AnyPath = Field(description="a .safetensors file that train-student wrote")
    size: Size | None = Field(None, description="px; null: the size it was trained at")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 on CUDA, else float32. A CPU with AVX512-BF16 computes twice as fast in bfloat16",
    )
    batch_size: Positive = Field(16, description="clips of one forward; a part of the cache's identity")
    compile: bool = False
    bn: Literal["running", "recalibrate"] = Field("running", description="BatchNorm statistics: the "
                                                  "checkpoint's, or a new estimate on the views to be stored")  # fmt: skip


class FeaturesConfig(Config):
    """How feature maps are stored. All keys can be combined. The string `float16` alone means the raw map."""

    codec: Literal[tuple(CODECS["features"])] = Field("float16", description="int8, int4, int3: 255, 15 or 7 steps "
                                                              "over each channel's range in the sample")  # fmt: skip
    dims: Positive | None = Field(None, description="keep this number of channel directions, the first of their PCA")
    energy: float | None = Field(
        None, gt=0, lt=1, description="keep the fewest directions that hold this share of the variance"
    )
    grid: tuple[Positive, Positive] | None = Field(None, description="h, w of the student's map: the smallest grid with "
                                                   "the same gradient, but only for students of that grid")  # fmt: skip
    time: Positive | None = Field(None, description="T' of the student's map; the teacher's T must be a multiple of it")
    sample: Positive = Field(1024, description="clip·views that the basis and the ranges are estimated on; every fifth "
                                               "clip is held out, to measure the error")  # fmt: skip
    rotate: Literal["hadamard"] | None = Field(
        None, description="turn the basis, so that all its coordinates have the same variance: int4 then rounds less. "
        "`dims` must be the order of a Hadamard matrix, such as 2^k, 12·2^k or 20·2^k"
    )  # fmt: skip
    basis: AnyPath | None = Field(
        None, description="take the basis and the ranges of this cache, made with the same teacher"
    )

    @model_validator(mode="before")
    @classmethod
    def _codec_alone(cls, values: Any) -> Any:
        return {"codec": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _one_width(self) -> FeaturesConfig:
        if self.dims is not None and self.energy is not None:
            raise ValueError("give dims or energy, not both")
        if self.rotate is not None and self.dims is None:
            raise ValueError(
                f"rotate: {self.rotate} turns a basis whose width is known: give dims, or leave rotate out"
            )
        if self.rotate is not None:
            hadamard(self.dims)  # raises ReskdError, a ValueError, for a width that has none
        return self

    @property
    def estimated(self) -> bool:
        """Whether a basis or ranges are estimated on a sample."""
        return codec_of("features", self.codec).levels is not None or self.has_basis

    @property
    def has_basis(self) -> bool:
        return self.dims is not None or self.energy is not None


class TargetsConfig(Config):
    logits: Literal[tuple(CODECS["logits"])] | None = Field(
        "uint8",
        description="null: store maps alone, of a teacher whose classifier isn't used; its classes may be others",
    )
    features: FeaturesConfig | None = Field(FeaturesConfig(), description="null: store logits only")

    @model_validator(mode="after")
    def _has_a_target(self) -> TargetsConfig:
        if self.logits is None and self.features is None:
            raise ValueError("logits and features are both null: there is nothing to store. Leave one of them out")
        return self


class CacheConfig(Config):
    """`pipeline.py cache-teacher`."""

    data: AnyPath = Field(description="a data set that `prepare` made")
    output: OutputPath = Field(description="the cache, a folder NAME.zarr, or s3://bucket/NAME.zarr (gs://, az://)")
    teacher: TeacherConfig
    views: Positive = Field(8, description="V, stored views of every clip; can be raised later")
    policy: ViewPolicy = Field(default_factory=ViewPolicy, description="how a view is drawn")
    targets: TargetsConfig = TargetsConfig()
    loader: LoaderConfig = LoaderConfig()
