"""A student in training: all that its steps change, its checkpoint last.pt, and the check for values that aren't finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from timm.utils import ModelEmaV3

from cache.errors import ReskdError
from stages.distill.student import Student
from stages.distill.targets import TargetDecoder
from stages.models.video_model import to_device
from stages.runtime.distributed import Ranks, has_bfloat16
from stages.runtime.log import RunLog
from stages.student.config import TrainConfig
from stages.student.new_student import NewStudent
from stages.student.optim import Schedule, build_optimizer, build_schedule
from stages.student.run_folder import check_still_there
from stages.student.state import random_state, restore_random_state, restore_torch, save_state, torch_state
from stages.video.device_render import Rendering


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
    save_weights: Callable[[str, torch.nn.Module, dict], None]  # ("best" | "last", model, notes)
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

    @property
    def amp(self) -> bool:
        """Whether forwards run in bfloat16."""
        return self.config.amp == "auto" and has_bfloat16(self.ranks.device)


def start_run(
    new: NewStudent, ranks: Ranks, checkpoint: dict | None, *, order_digest: str, steps_per_epoch: int, **hooks
) -> TrainingRun:
    """A run from its beginning, or from the content of its last.pt. The student is moved to the ranks' device.

    `hooks` are the other fields of `TrainingRun`.
    Raises ReskdError for a checkpoint of another number of ranks, or of other clips.
    """
    config, student = new.config, to_device(new.student, ranks.device)
    optimizer = build_optimizer(student, config.optim, config.batch_size * config.accumulate * ranks.world)
    ema = ModelEmaV3(student.model, decay=config.ema, use_warmup=True, exclude_buffers=True) if config.ema else None
    wrapped = ranks.wrap(student)
    run = TrainingRun(
        config=config,
        ranks=ranks,
        order_digest=order_digest,
        steps=config.schedule.epochs * steps_per_epoch,
        student=student,
        wrapped=torch.compile(wrapped) if config.compile else wrapped,
        ema=ema,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, config.schedule, steps_per_epoch),
        generators=new.generators,
        **hooks,
    )
    if checkpoint:
        _restore(run, checkpoint)
    return run


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
            f"{_last_good(config)}; lower optim.lr, set optim.clip_grad, or look at the loss weights in metrics.jsonl"
        )


def _last_good(config: TrainConfig) -> str:
    last = config.output / "last.pt"
    return f"the last good checkpoint is {last}" if last.exists() else "there was no checkpoint yet"


def remember_state(run: TrainingRun) -> Callable[[], None]:
    """A function that undoes what micro-batches change in a run before its optimizer's step."""
    buffers = [buffer.clone() for buffer in run.student.buffers()]
    progress, generators = replace(run.progress, sums=dict(run.progress.sums)), run.generators

    def undo() -> None:
        for buffer, old in zip(run.student.buffers(), buffers, strict=True):
            buffer.data.copy_(old)
        run.progress, run.generators = progress, generators

    return undo


def save_checkpoint(run: TrainingRun) -> None:
    """Write last.pt. Each rank has its own BatchNorm buffers, random generators and sums; the file holds those of all.

    Raises ReskdError, on every rank, if a weight is not finite, or a sum of any rank.
    """
    config, progress, student = run.config, run.progress, run.student
    statistics = _statistics(student.model)
    buffers = {name: value.cpu() for name, value in student.model.named_buffers() if name in statistics}
    of_this_rank = {"random": random_state(), "buffers": buffers, "failed": progress.failed_clips,
                    "sums": {n: v.cpu() for n, v in progress.sums.items()}, "summed": progress.summed}  # fmt: skip
    of_all_ranks = run.ranks.gather(of_this_rank)
    for of_rank in of_all_ranks:
        check_finite(run, of_rank["sums"])
    if not torch.stack([p.isfinite().all() for p in run.student.parameters()]).all():  # one wait for the device
        raise ReskdError(f"{config.output}: weights are not finite after step {progress.step}; {_last_good(config)}; "
                         f"lower optim.lr or set optim.clip_grad")  # fmt: skip
    if run.ranks.first:
        check_still_there(config.output)
        checkpoint = {
            "world": run.ranks.world,
            "order": run.order_digest,
            "step": progress.step,
            "best": progress.best,
            "validation_due": progress.validation_due,
            "model": student.model.state_dict(),
            "adapter": student.projector.state_dict() if student.projector else None,  # its name in older versions
            "ema": run.ema.module.state_dict() if run.ema else None,
            "optimizer": run.optimizer.state_dict(),
            "ranks": of_all_ranks,
        }
        save_state(config.output / "last.pt", checkpoint)


def _statistics(model: torch.nn.Module) -> set[str]:
    """Names of the buffers that training changes, BatchNorm's. Others, such as a Swin's tables of positions, are constants."""
    norms = (name for name, module in model.named_modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase))
    return {f"{norm}.{name}" for norm in norms for name in ("running_mean", "running_var", "num_batches_tracked")}


def _restore(run: TrainingRun, checkpoint: dict) -> None:
    """Put a run into the state that `save_checkpoint` saved. Raises ReskdError for other ranks or clips."""
    config, ranks, student = run.config, run.ranks, run.student
    if checkpoint["world"] != ranks.world:
        raise ReskdError(f"{config.output / 'last.pt'} is of {checkpoint['world']} processes, this run has {ranks.world}: "
                         f"start {checkpoint['world']} processes")  # fmt: skip
    if checkpoint["order"] != run.order_digest:
        where = f"{config.data.train} or {config.data.cache}" if config.data.cache else str(config.data.train)
        raise ReskdError(f"{config.output}: the clips in {where} are not those that the run began with: put them back, "
                         f"or delete {config.output} to begin anew")  # fmt: skip
    of_this_rank = checkpoint["ranks"][ranks.rank]
    student.model.load_state_dict(checkpoint["model"])
    student.model.load_state_dict(of_this_rank["buffers"], strict=False)
    if student.projector:
        student.projector.load_state_dict(checkpoint["adapter"])
    if run.ema:
        run.ema.module.load_state_dict(checkpoint["ema"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    restore_random_state(of_this_rank["random"])
    run.generators = torch_state()
    sums = {n: v.to(ranks.device) for n, v in of_this_rank["sums"].items()}
    run.progress = Progress(
        checkpoint["step"],
        checkpoint["best"],
        sums,
        of_this_rank["summed"],
        of_this_rank["failed"],
        checkpoint.get("validation_due", False),
    )
