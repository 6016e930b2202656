"""A student in training: all that its steps change, and the check for values that aren't finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from timm.utils import ModelEmaV3

from cache.errors import ReskdError
from stages.distill.student import Student
from stages.distill.targets import TargetDecoder
from stages.models.video_model import to_device
from stages.runtime.device_copy import Copy, copier
from stages.runtime.distributed import Ranks, has_bfloat16
from stages.runtime.log import RunLog
from stages.student.config import TrainConfig
from stages.student.new_student import NewStudent
from stages.student.optim import Schedule, build_optimizer, build_schedule
from stages.student.state import restore_torch, torch_state
from stages.video.render import Rendering


@dataclass
class Progress:
    """How far a run is, and the sums for its next log row."""

    step: int = 0  # optimizer steps taken
    best: dict | None = None  # metrics of the best validation so far, by their headline
    sums: dict[str, torch.Tensor] = field(default_factory=dict)  # of the loss and its terms, over micro-batches
    summed: int = 0  # micro-batches in `sums`
    failed_clips: int = 0  # clips that this rank could not decode
    validation_due: bool = False  # whether the validation after the last step couldn't be done
    logged_loss: float = float("nan")  # of the last log row

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Add the loss and its terms of one micro-batch to the sums."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.summed += 1


@dataclass
class TrainingRun:
    """A student in training, alone or in a cohort: its parts, and what its steps change."""

    config: TrainConfig
    ranks: Ranks
    order_digest: str  # of the order of its batches
    steps: int  # optimizer steps of the whole run
    student: Student
    wrapped: torch.nn.Module  # the student as its steps call it: in DistributedDataParallel, compiled, or itself
    ema: ModelEmaV3 | None  # averages the model only: the projector is not needed after training
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    decoder: TargetDecoder  # makes numbers of stored targets
    copy: Copy  # of tensors to the ranks' device
    save_weights: Callable[[str, torch.nn.Module, dict], None]  # ("best" | "last", model, notes)
    check_folder: Callable[[], None]  # raises ReskdError if rank 0 can't go on writing; called before a checkpoint
    on_finish: Callable[
        [Progress, int], None
    ]  # called on every rank after all is saved; int: failed clips of all ranks
    rendering: Rendering | None = None  # the rendering of a batch that this student sees; None: the batch's `clips`
    progress: Progress = field(default_factory=Progress)
    generators: dict = field(default_factory=torch_state)  # state of torch's random generators: each run has its own
    log: RunLog | None = None  # on rank 0
    failure: Exception | None = None  # why it was taken out while the others go on

    @property
    def evaluated(self) -> torch.nn.Module:
        """The model that is validated and exported: the averaged one, if there is one."""
        return self.ema.module if self.ema else self.student.model

    @cached_property
    def scored(self) -> torch.nn.Module:
        """`evaluated` as validation calls it: compiled if the steps are."""
        return torch.compile(self.evaluated) if self.config.compile else self.evaluated

    @property
    def amp(self) -> bool:
        """Whether forwards run in bfloat16."""
        return self.config.amp == "auto" and has_bfloat16(self.ranks.device)


def start_run(new: NewStudent, ranks: Ranks, *, order_digest: str, steps_per_epoch: int, **hooks) -> TrainingRun:
    """A run at its beginning. The student is moved to the ranks' device.

    `hooks` are the other fields of `TrainingRun`.
    """
    config, student = new.config, to_device(new.student, ranks.device)
    optimizer = build_optimizer(student, config.optim, config.batch_size * config.accumulate * ranks.world)
    ema = ModelEmaV3(student.model, decay=config.ema, use_warmup=True, exclude_buffers=True) if config.ema else None
    wrapped = ranks.wrap(student.train())
    return TrainingRun(
        config=config,
        ranks=ranks,
        order_digest=order_digest,
        steps=config.schedule.epochs * steps_per_epoch,
        student=student,
        wrapped=torch.compile(wrapped) if config.compile else wrapped,
        ema=ema,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, config.schedule, steps_per_epoch),
        copy=copier(ranks.device),
        generators=new.generators,
        **hooks,
    )


@contextmanager
def own_random_generators(run: TrainingRun) -> Iterator[None]:
    """Dropout and other draws use this run's generators, so that they don't depend on the students trained beside it."""
    restore_torch(run.generators)
    try:
        yield
    finally:
        run.generators = torch_state()


def check_finite(run: TrainingRun, terms: Mapping[str, torch.Tensor]) -> None:
    """Raise ReskdError for a value that is not finite, before a checkpoint with damaged weights replaces a good one.

    `terms`: values by name, of "loss" and of its terms.
    """
    config, progress = run.config, run.progress
    bad = [name for name, value in terms.items() if not torch.isfinite(value)]
    if bad:
        raise ReskdError(
            f"{config.output}: {' and '.join(n for n in bad if n != 'loss') or 'the loss'} is not finite at step "
            f"{progress.step + 1} (learning rate for {config.optim.lr_batch} clips: {config.optim.lr}); "
            f"{last_good(config)}; lower optim.lr, set optim.clip_grad, or look at the loss weights in metrics.jsonl"
        )


def last_good(config: TrainConfig) -> str:
    good = (config.folder / "last.pt").exists()
    return f"the last good checkpoint is {config.output / 'last.pt'}" if good else "there was no checkpoint yet"


def remember_state(run: TrainingRun) -> Callable[[], None]:
    """A function that undoes what micro-batches change in a run before its optimizer's step."""
    buffers = [buffer.clone() for buffer in run.student.buffers()]
    progress, generators = replace(run.progress, sums=dict(run.progress.sums)), run.generators

    def undo() -> None:
        for buffer, old in zip(run.student.buffers(), buffers, strict=True):
            buffer.data.copy_(old)
        run.progress, run.generators = progress, generators

    return undo
