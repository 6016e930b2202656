"""The config of `export`."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.config.schema import AnyPath, Config, OutputPath, Positive
from stages.stream.config import LoaderConfig


class ExportConfig(Config):
    """`pipeline.py export`."""

    checkpoint: AnyPath
    output: OutputPath = Field(description="NAME.onnx or NAME.pt2")
    data: AnyPath | None = Field(None, description="a data set: its clips check the file, and calibrate int8")
    int8: bool = Field(False, description="8-bit weights and activations; for .onnx")
    calibrate: Positive = Field(128, description="clips of `data` that check the file and calibrate int8")
    max_drop: float = Field(1.0, ge=0, le=100, description="points of top-1 that int8 may cost")
    overwrite: bool = Field(False, description="replace the output if it exists already")
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _fits(self) -> ExportConfig:
        if self.output.suffix not in (".onnx", ".pt2"):
            raise ValueError(f"output {self.output} must end in .onnx or .pt2")
        if self.int8 and self.output.suffix != ".onnx":
            raise ValueError(f"int8 is for .onnx: give an output NAME.onnx, not {self.output.name}")
        if self.int8 and self.data is None:
            raise ValueError("int8 needs data: the ranges of activations come from real clips, and labels show what "
                             "int8 costs: give --data DATASET")  # fmt: skip
        return self
