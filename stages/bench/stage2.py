"""Stage two: the time that distillation adds to plain training, and the share of the student's step in training.

Distillation adds little to the step of a large network: less than the noise in the difference of two runs. So its parts
are measured alone, in seconds of one core: reading stored views and targets, minus sampling a view; and the losses with
their gradient for the student's outputs (through its projector), minus those of plain training.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.reader import CacheReader
from cache.view import ViewPolicy
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.device_peak import product_gmacs
from stages.bench.figures import Figure, at_least, at_most, measured, median_of, profiled, show
from stages.bench.students import DEMO, FRAMES, R18, R50, Bench, make_bench
from stages.bench.videos import SMALL
from stages.distill.config import LossConfig
from stages.distill.student import Student, StudentOutput, build_student
from stages.distill.targets import TargetDecoder, loss_terms, target_decoder
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import model_stats, to_device
from stages.runtime.distributed import fast_kernels, has_bfloat16, join_ranks, wait_for
from stages.runtime.log import read_metrics
from stages.shards.dataset import open_dataset
from stages.stream.batch import Batch
from stages.stream.clips import ClipDataset
from stages.stream.config import LoaderConfig
from stages.stream.frame_source import frame_options
from stages.stream.pack_reader import open_pack
from stages.student.config import TrainConfig
from stages.student.optim import build_optimizer
from stages.student.train_student import train_student

PLAIN = LossConfig()
LOGITS, FEATURES = "logits", "logits + 16 KB of features"
LOSSES = {LOGITS: LossConfig(logit_kl=1.0), FEATURES: LossConfig(logit_kl=1.0, feature_mse=1.0)}
GOALS = {LOGITS: 0.1, FEATURES: 0.3}  # ms a clip
BATCH = 8


@dataclass(frozen=True)
class Setup:
    """`students`: (name, network, px, epochs). The data set has `clips` videos, each under `times` names."""

    students: tuple[tuple[str, ModelConfig, int, int], ...]
    clips: int = 8
    times: int = 8
    seconds: float = 10.0
    runs: int = RUNS


FULL = Setup((("the demo's student at 32", DEMO, 32, 20), ("R18 at 112", R18, 112, 2), ("R50 at 112", R50, 112, 2)))
QUICK = Setup(FULL.students[:1], times=4)


def run_stage2(quick: bool, output: Path | None, trace: Path | None, folder: Path) -> list[Figure]:
    """Measure with 340x256 clips of GOP 12, and with a pack of all frames. The clips are made in `folder` and kept."""
    setup = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as temporary, join_ranks() as ranks:
        bench = make_bench(Path(temporary), folder, SMALL[0], setup.clips, setup.times, setup.seconds)
        joining = {name: _joining(bench, targets, setup) for name, targets in
                   (("drawn", None), (LOGITS, ("logits",)), (FEATURES, ("logits", "features")))}  # fmt: skip
        figures = [measured(f"input: views and targets, {name}", ms, "ms a clip") for name, ms in joining.items()]
        for student in setup.students:
            figures += _added_times(bench, student, joining, setup)
            figures += _step_shares(bench, student, ranks.device, setup)
        figures.append(_distilled_over_plain(bench, setup.students[0], setup))
        if trace is not None:
            with profiled(trace):
                _rates(_run(bench, "traced", setup.students[0]))
    show("stage2", figures, output)
    return figures


def _joining(bench: Bench, targets: Sequence[str] | None, setup: Setup) -> list[float]:
    """The time per clip on one core to sample a view (`targets` None), or to read a stored view with its targets."""
    data, reader = open_dataset(bench.data()), None if targets is None else CacheReader(bench.cache(), targets)
    clips = ClipDataset(data, size=112, num_classes=2, cache=reader,
                  policy=ViewPolicy(num_frames=FRAMES) if reader is None else None)  # fmt: skip
    rows = [(s, int(r), 0) for s, usable in enumerate(data.usable_rows()) for r in usable]
    chunks = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)] * max(1, 256 // len(rows))

    def join() -> None:
        for chunk in chunks:
            clips.views_and_targets(chunk, [data.rows(data.shards[s].name)[r] for s, r, _ in chunk])

    return _ms(join, sum(map(len, chunks)), setup)


def _added_times(
    bench: Bench, student: tuple[str, ModelConfig, int, int], joining: dict[str, list[float]], setup: Setup
) -> list[Figure]:
    """The time per clip that each kind of distillation adds to plain training."""
    name, model, size, _ = student
    net, batch, reader = _net(model), _batch(_clips(bench, size)), CacheReader(bench.cache(), ("logits", "features"))
    constants = reader.constants()
    decoder = target_decoder(reader.manifest, constants, torch.device("cpu"))
    with torch.no_grad():
        outputs = net(batch.clips)
    plain, figures = _ms(partial(_gradient, PLAIN, Student(net), outputs, batch, decoder), BATCH, setup), []
    for kind, losses in LOSSES.items():
        adapted = build_student(net, losses, bench.teacher.args["channels"][-1], constants)
        distilled = _ms(partial(_gradient, losses, adapted, outputs, batch, decoder), BATCH, setup)
        added = np.subtract(joining[kind], joining["drawn"]) + np.subtract(distilled, plain)
        figures.append(at_most(f"{name}: {kind} adds", added.tolist(), "ms a clip", GOALS[kind]))
    return figures


def _gradient(
    losses: LossConfig, student: Student, outputs: tuple[Tensor, Tensor], batch: Batch, decoder: TargetDecoder
) -> None:
    """Compute the weighted losses and their gradient for the student's logits and map."""
    logits, features = (output.detach().requires_grad_() for output in outputs)
    adapted = features if student.projector is None else student.projector(features)
    terms, weights = loss_terms(StudentOutput(logits, adapted), batch, losses, decoder), losses.weights()
    sum(weights[name] * term for name, term in terms.items()).backward()


def _step_shares(
    bench: Bench, student: tuple[str, ModelConfig, int, int], device: torch.device, setup: Setup
) -> list[Figure]:
    """The step and the input, each alone, on one core. Stage two from a pack of crops against the step alone, in wall time."""
    name, model, size, _ = student
    packed, path = _clips(bench, size, "crops"), bench.packed("crops", size)
    net, clips = to_device(_net(model), device), _batch(packed).clips.to(device)
    optimizer = build_optimizer(net, _run(bench, "none", student).optim, BATCH)
    labels, amp = torch.zeros(BATCH, dtype=torch.int64, device=device), has_bfloat16(device)

    def step() -> None:
        with fast_kernels(device):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                logits = net.train()(clips).logits
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

    alone = _ms(step, BATCH, setup)
    input_times = _ms(partial(_batch, packed), BATCH, setup)
    steps = max(3, round(0.5 / (BATCH * median_of(alone)[0] / 1e3)))
    wait_for(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait_for(device)
    rate = steps * BATCH / (time.perf_counter() - began)
    busy = 3 * model_stats(net, size).gmacs * rate / product_gmacs(device, torch.bfloat16 if amp else torch.float32)
    run = _run(bench, f"busy-{model.backbone}-{size}", student, data={"cache": bench.cache(), "pack": path},
               losses=LOSSES[LOGITS].model_dump())  # fmt: skip
    trained = [r / rate for r in _rates(run)]
    share = 100 * median_of(input_times)[0] / (median_of(input_times)[0] + median_of(alone)[0])
    return [
        measured(f"{name}: step", alone, "ms a clip"),
        Figure(f"{name}: the step's multiply-adds ÷ a matrix product's", busy, ""),
        measured(f"{name}: input from a pack of crops", input_times, "ms a clip"),
        Figure(f"{name}: the input's share of both", share, "%"),
        at_least(f"{name}: stage two from it ÷ the step alone", trained, "", 0.9),
    ]


def _distilled_over_plain(bench: Bench, student: tuple[str, ModelConfig, int, int], setup: Setup) -> Figure:
    """The clips per second with features and logits, divided by those of plain training. Both kinds of run alternate."""
    size, ratios, number = student[2], [], count()
    distilled = {
        "data": {"cache": bench.cache(), "pack": bench.packed(size=size)},
        "losses": LOSSES[FEATURES].model_dump(),
    }
    plain = {"data": {"pack": bench.packed(size=size)}}
    for _ in range(setup.runs):
        pair = [
            median_of(_rates(_run(bench, f"pair-{next(number)}", student, **keys)))[0] for keys in (distilled, plain)
        ]
        ratios.append(pair[0] / pair[1])
    return at_least(f"{student[0]}: distilled ÷ plain training, clips a second", ratios, "", 0.97)


def _run(bench: Bench, output: str, student: tuple[str, ModelConfig, int, int], **changes) -> TrainConfig:
    _, model, size, epochs = student
    data = {"train": bench.data(), **changes.pop("data", {})}
    return bench.student(
        output, model, size, data=data, schedule={"epochs": epochs}, batch_size=BATCH, log_every=4, **changes
    )


def _rates(config: TrainConfig) -> list[float]:
    """Train, and return the clips per second of each row in the log. The first quarter, when workers start, is left out."""
    train_student(config)
    rates = [row["clips_per_s"] for row in read_metrics(config.output) if row["kind"] == "train"]
    return rates[len(rates) // 4 :]


def _net(model: ModelConfig) -> torch.nn.Module:
    return build_model(model.model_copy(update={"num_classes": 2}))


def _clips(bench: Bench, size: int, frames: str = "all") -> ClipDataset:
    """Clips from a pack of `frames`, with all targets."""
    pack = open_pack(bench.packed(frames, size))
    return ClipDataset(open_dataset(bench.data()), size=size, num_classes=2, **frame_options(pack, LoaderConfig()),
                 cache=CacheReader(bench.cache(), ("logits", "features")))  # fmt: skip


def _batch(clips: ClipDataset) -> Batch:
    """The first clips with stored view 0."""
    return clips.__getitems__([(0, r, 0) for r in range(BATCH)])


def _ms(work: Callable[[], object], clips: int, setup: Setup) -> list[float]:
    return [1e3 * seconds / clips for seconds in cpu_seconds(work, setup.runs)]
