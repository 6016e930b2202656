"""An ONNX model in 8 bits, by onnxruntime: calibrated on clips, and measured against the network on labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.export.check import Run, RunNet
from stages.export.program import INPUT, OUTPUTS, one_line_errors
from stages.metrics.scoring import ScoredModel, score_models
from stages.runtime.distributed import Ranks
from stages.stream.batch import Batch

# These stay in float: they take little time, and 8 bits would cost accuracy.
FLOAT_OPERATORS = ("Softmax", "LayerNormalization")


def quantise(path: Path, clips: Iterable[Tensor], metadata: Mapping[str, str]) -> bytes:
    """The ONNX model of a file with 8-bit weights, one scale for each channel, and 8-bit activations (QDQ).

    `clips`: batches uint8 [n,T,3,S,S]; the smallest and the largest value of each activation on them are its range. Weights
    use 7 of the 8 bits: x86 processors without VNNI add up pairs of products in 16 bits, which 8 bits may overflow.
    Activations are unsigned, which is twice as fast on x86. Logits are not rounded.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterator[Tensor]):
            self.batches = batches

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    model = onnx.load_from_string(path.read_bytes())
    kept = [node.name for node in model.graph.node
            if node.op_type in FLOAT_OPERATORS or OUTPUTS[0] in node.output]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, one_line_errors("onnxruntime can't quantise the network"):
        output = Path(folder) / "int8.onnx"
        quantize_static(model, output, Reader(iter(clips)), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, reduce_range=True, nodes_to_exclude=kept)  # fmt: skip
        quantised = onnx.load(output)
    onnx.helper.set_model_props(quantised, dict(metadata))
    return quantised.SerializeToString()


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of the network and of its 8-bit file on the same clips, percent."""

    clips: int
    network: float
    int8: float

    @property
    def drop(self) -> float:
        """Points."""
        return self.network - self.int8


def measure_accuracy(net: nn.Module, run: Run, batches: Iterable[Batch], classes: int) -> Accuracy:
    """Score both on batches of whole videos. Raises ReskdError if no clip counts or scores aren't finite."""
    models = [ScoredModel(model, None, False) for model in (net, RunNet(run))]
    results = score_models(models, batches, classes, Ranks(0, 1, torch.device("cpu")))
    for result in results:
        if isinstance(result, Exception):
            raise result
    network, int8 = results
    return Accuracy(network["clips"], network["top1"], int8["top1"])


def check_drop(accuracy: Accuracy, most: float, path: Path) -> None:
    """Raises ReskdError, with the figures, if 8 bits cost more than `most` points."""
    if accuracy.drop > most:
        raise ReskdError(f"{path} would lose {accuracy.drop:.2f} points of top-1: {accuracy.network:.2f} % in float, "
                         f"{accuracy.int8:.2f} % in int8, on the same {accuracy.clips} clips; at most {most:g} are allowed. "
                         "Nothing was written; calibrate on more clips (--calibrate), allow more (--max-drop), or leave "
                         "--int8 out")  # fmt: skip
