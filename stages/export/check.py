"""Runs an exported file, and compares its answers with those of the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.export.program import INPUT, OUTPUTS, one_line_errors, quiet
from stages.models.video_model import ModelOutput

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-3  # of the largest logit

Run = Callable[[Tensor], Tensor]  # clips uint8 [n,T,3,S,S] -> logits float32 [n,K]


def onnx_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session of onnxruntime on the CPU. `threads`: 0 are as many as physical cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors; warnings give advice to programmers
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def onnx_runner(path: Path, threads: int = 0) -> Run:
    """What runs an ONNX file."""
    session = onnx_session(path, threads)
    return lambda clips: torch.from_numpy(session.run([OUTPUTS[0]], {INPUT: clips.numpy()})[0])


def pt2_runner(path: Path) -> Run:
    """What runs a .pt2 file."""
    with quiet(), open(path, "rb") as file:
        net = torch.export.load(file).module()
    return lambda clips: net(clips)[0]


def careful(open_file: Callable[[Path], Run], path: Path, output: Path) -> Run:
    """What runs an unfinished file. Raises ReskdError of one line, which names the `output`, where the runtime fails."""
    what = f"{output} can't be run"
    with one_line_errors(what):
        run = open_file(path)

    def careful_run(clips: Tensor) -> Tensor:
        with one_line_errors(what):
            return run(clips)

    return careful_run


class RunNet(nn.Module):
    """A file in the place of a network: clips -> ModelOutput without features."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run

    def forward(self, clips: Tensor) -> ModelOutput:
        return ModelOutput(self.run(clips), None)


@dataclass(frozen=True)
class Comparison:
    """largest: the largest difference of two logits, as a share of the largest logit. flipped: clips with another top-1,
    among those whose two best logits lie further apart than TOLERANCE. ms: of the file, for a clip, in batches."""

    clips: int
    largest: float
    flipped: int
    ms: float

    @property
    def equal(self) -> bool:
        return self.largest <= TOLERANCE and not self.flipped


@torch.inference_mode()
def compare(net: nn.Module, run: Run, batches: Iterable[Tensor]) -> Comparison:
    """Compare a file with the network, in eval mode, on batches of clips. The first batch warms up, and its time doesn't count.

    Raises ReskdError if there is no clip.
    """
    wanted, given, seconds = [], [], []
    for clips in batches:
        wanted.append(net(clips).logits)
        began = time.perf_counter()
        given.append(run(clips))
        seconds.append(time.perf_counter() - began)
    if not wanted:
        raise ReskdError("no clip can be decoded, so the file can't be checked: give another --data, or leave it out")
    first, wanted, given = len(wanted[0]), torch.cat(wanted), torch.cat(given)
    timed = (sum(seconds[1:]), len(wanted) - first) if len(seconds) > 1 else (seconds[0], first)
    scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    difference = ((given - wanted).abs().max() / scale).item()
    largest = difference if difference == difference else float("inf")  # of logits that are no numbers
    return Comparison(len(wanted), largest, _flipped(wanted, given, scale), 1e3 * timed[0] / timed[1])


def _flipped(wanted: Tensor, given: Tensor, scale: Tensor) -> int:
    best = wanted.topk(min(2, wanted.shape[1])).values
    sure = (best[:, 0] - best[:, -1]) / scale > TOLERANCE
    return int((sure & (wanted.argmax(1) != given.argmax(1))).sum())


def check_equal(comparison: Comparison, path: Path) -> None:
    """Raises ReskdError, with the figures, if a file gives other answers than the network."""
    if not comparison.equal:
        raise ReskdError(f"{path} would give other answers than the network: the largest difference of two logits is "
                         f"{comparison.largest:.2g} of the largest logit (at most {TOLERANCE:g}), and {comparison.flipped} of "
                         f"{comparison.clips} clips have another top-1. Nothing was written; try the other format (.onnx, "
                         ".pt2)")  # fmt: skip
