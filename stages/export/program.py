"""A network as a program of torch.export, as ONNX, and as the bytes of files of both kinds."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from cache.errors import ReskdError
from stages.models.video_model import VideoModel

INPUT, OUTPUTS = "frames", ("logits", "probabilities")
METADATA = "metadata.json"  # the name of the metadata in a .pt2
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_ONNX_BYTES = 2**31 - 2**24  # protobuf holds 2 GiB; the graph takes a little of it
OPERATOR = re.compile(r"target=torch\.ops\.([\w.]+)|OpOverload\(op='([\w.]+)'")


class ExportedNet(nn.Module):
    """Frames uint8 [B,T,3,S,S], RGB -> logits and probabilities, float32 [B,K]. The normalisation is in the model."""

    def __init__(self, model: VideoModel):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(frames).logits
        return logits, logits.softmax(-1)


def to_program(model: VideoModel, size: int, checkpoint: Path) -> ExportedProgram:
    """The program of a model in eval mode, for any number of clips of `size` px.

    Raises ReskdError, with torch's reason in one line, if torch.export can't follow the model.
    """
    frames = torch.zeros(2, model.num_frames, 3, size, size, dtype=torch.uint8)
    with one_line_errors(f"{checkpoint} can't be exported"):
        net = ExportedNet(model.requires_grad_(False))
        program = torch.export.export(net, (frames,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def pt2_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """A .pt2 with the metadata as the extra file `metadata.json`, an object of texts."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata))})
    return file.getvalue()


def onnx_bytes(program: ExportedProgram, metadata: Mapping[str, str], checkpoint: Path) -> bytes:
    """An ONNX model with the metadata in its `metadata_props`.

    Raises ReskdError, with the exporter's reason in one line, if an operator has no ONNX, or if the weights take more
    than ONNX's 2 GiB.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > MAX_ONNX_BYTES:
        raise ReskdError(f"{checkpoint} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds 2: give an output "
                         "NAME.pt2")  # fmt: skip
    with one_line_errors(f"{checkpoint} can't be written as ONNX"):
        converted = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=list(OUTPUTS)
        )
        for node in converted.model.graph:
            node.metadata_props.clear()  # of which module of torch it comes: half of a small file
        converted.model.metadata_props.update(metadata)
        return converted.model_proto.SerializeToString()


def missing_packages() -> list[str]:
    """The packages that write and run ONNX, of the extra `export`, that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_packages(what: str, command: str) -> None:
    """Raises ReskdError unless the packages that write and run ONNX are installed. `command`: of pipeline.py, to run again."""
    if missing := missing_packages():
        raise ReskdError(f"{what} needs the packages {', '.join(missing)}, which are not installed: "
                         f"`uv run --extra export pipeline.py {command}`")  # fmt: skip


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turns an error of an exporter into a ReskdError of one line: `what`, the operator at fault, the reason.

    The exporters' own logs and warnings are not shown.
    """
    try:
        with quiet():
            yield
    except ReskdError:
        raise
    except Exception as error:  # the exporters raise whatever torch and the model's Python raise
        raise ReskdError(f"{what}: {reason(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no logs of libraries, which give advice to programmers."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def reason(error: BaseException) -> str:
    """An exporter's error in one line: the operator, if the error names one, and the first line of the first cause."""
    texts = []
    while error is not None:
        texts.append(str(error).strip() or type(error).__name__)
        error = error.__cause__
    names = [name for text in texts for pair in OPERATOR.findall(text) for name in pair if name]
    line = texts[-1].splitlines()[0]
    return f"operator {names[0].removesuffix('.default')}: {line}" if names else line
