"""A student at work: what its steps change, and its last.pt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3

from cache.errors import ReskdError
from stages.distill.student import Student
from stages.distill.targets import TargetDecoder
from stages.runtime.distributed import Ranks
from stages.runtime.log import RunLog
from stages.student.config import TrainConfig
from stages.student.optim import Schedule, build_optimizer, build_schedule
from stages.student.state import random_state, restore_random_state, restore_torch, save_state, torch_state
from stages.video.device_render import Rendering


@dataclass
class Progress:
    """Where a run stands, and the sums of the log row in the making."""

    step: int = 0  # optimizer steps taken
    best: dict | None = None  # metrics of the best validation so far, by their headline
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    summed: int = 0  # micro-batches in `sums`
    failed: int = 0  # clips which this rank could not decode
    loss: float = float("nan")  # of the last log row

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.summed += 1


@dataclass
class Run:
    """A student at work, alone or in a cohort: what its steps change, and last.pt holds, beside what they follow."""

    config: TrainConfig
    ranks: Ranks
    order: str  # digest of the order of its batches
    steps: int  # of the whole run
    student: Student
    wrapped: torch.nn.Module  # the student for several ranks, and compiled
    ema: ModelEmaV3 | None  # of the model alone: an adapter is of no use afterwards
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    decoder: TargetDecoder  # of the targets
    save_weights: Callable[[str, torch.nn.Module, dict], None]  # ("best" | "last", model, notes)
    ended: Callable[[Progress, int], None]  # on every rank, once all is saved, with the failed clips of all ranks
    rendering: Rendering | None = None  # what it sees of a batch, where that isn't the batch's own clips
    progress: Progress = field(default_factory=Progress)
    random: dict = field(default_factory=torch_state)  # of torch's generators: each run draws from its own
    log: RunLog | None = None  # on rank 0
    failure: Exception | None = None  # why it is out, while others go on

    @property
    def evaluated(self) -> torch.nn.Module:
        return self.ema.module if self.ema else self.student.model

    @property
    def amp(self) -> bool:
        """Whether forwards run in bfloat16."""
        return self.config.amp == "auto" and self.ranks.device.type == "cuda"


def start_run(
    config: TrainConfig,
    ranks: Ranks,
    student: Student,
    state: dict | None,
    *,
    order: str,
    steps_per_epoch: int,
    random: dict,
    **hooks,
) -> Run:
    """A run of `student` (on the ranks' device) from its beginning, or from the checkpoint `state`.

    `random`: torch's generators, from which its training draws; `hooks` are the other fields of `Run`.
    Raises ReskdError for a checkpoint of other ranks or clips.
    """
    optimizer = build_optimizer(student, config.optim, config.batch_size * config.accumulate * ranks.world)
    ema = ModelEmaV3(student.model, decay=config.ema, use_warmup=True, exclude_buffers=True) if config.ema else None
    wrapped = ranks.wrap(student)
    run = Run(
        config=config,
        ranks=ranks,
        order=order,
        steps=config.schedule.epochs * steps_per_epoch,
        student=student,
        wrapped=torch.compile(wrapped) if config.compile else wrapped,
        ema=ema,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, config.schedule, steps_per_epoch),
        random=random,
        **hooks,
    )
    if state:
        _restore(run, state)
    return run


@contextmanager
def own_draws(run: Run) -> Iterator[None]:
    """Dropout and the like draw from this run's generators: what it draws doesn't depend on who trains beside it."""
    restore_torch(run.random)
    try:
        yield
    finally:
        run.random = torch_state()


def leave(run: Run, error: Exception) -> None:
    """Take a run that failed out, and give back the memory that its training took."""
    run.failure = error.with_traceback(None)  # whose frames hold the step's activations
    error.__context__ = error.__cause__ = None
    run.optimizer.zero_grad(set_to_none=True)
    run.optimizer.state.clear()
    run.wrapped = run.student.to("cpu")  # without the buckets of several ranks' gradients
    if run.ema:
        run.ema.module.to("cpu")


def check_finite(run: Run, terms: Mapping[str, torch.Tensor]) -> None:
    """Raise before a checkpoint is written over by one whose weights have met a NaN; `terms`: "loss" and its terms."""
    config, progress = run.config, run.progress
    bad = [name for name, value in terms.items() if not torch.isfinite(value)]
    if bad:
        raise ReskdError(
            f"{config.output}: {' and '.join(n for n in bad if n != 'loss') or 'the loss'} is not finite at step "
            f"{progress.step + 1} (learning rate for {config.optim.lr_batch} clips: {config.optim.lr}); {_kept(config)}; lower "
            f"optim.lr, set optim.clip_grad, or look at the weights in metrics.jsonl"
        )


def _kept(config: TrainConfig) -> str:
    last = config.output / "last.pt"
    return f"the last good checkpoint is {last}" if last.exists() else "there was no checkpoint yet"


def save_run(run: Run) -> None:
    """Write last.pt. BatchNorm's buffers, generators, and sums are each rank's own: all are kept.

    Raises ReskdError, on every rank, where a sum of any of them or a weight is not finite.
    """
    config, progress, model, adapter = run.config, run.progress, run.student.model, run.student.adapter
    buffers = {name: value.cpu() for name, value in model.named_buffers()}
    own = {"random": random_state(), "buffers": buffers, "failed": progress.failed,
           "sums": {n: v.cpu() for n, v in progress.sums.items()}, "summed": progress.summed}  # fmt: skip
    each = run.ranks.gather(own)
    for of_rank in each:
        check_finite(run, of_rank["sums"])
    if not all(bool(p.isfinite().all()) for p in run.student.parameters()):
        raise ReskdError(f"{config.output}: weights are not finite after step {progress.step}; {_kept(config)}; lower "
                         f"optim.lr or set optim.clip_grad")  # fmt: skip
    if run.ranks.first:
        state = {
            "world": run.ranks.world,
            "order": run.order,
            "step": progress.step,
            "best": progress.best,
            "model": model.state_dict(),
            "adapter": adapter.state_dict() if adapter else None,
            "ema": run.ema.module.state_dict() if run.ema else None,
            "optimizer": run.optimizer.state_dict(),
            "ranks": each,
        }
        save_state(config.output / "last.pt", state)


def _restore(run: Run, state: dict) -> None:
    """Take up a run where `save_run` left it. Raises ReskdError for other ranks or clips than it had."""
    config, ranks, student = run.config, run.ranks, run.student
    if state["world"] != ranks.world:
        raise ReskdError(f"the checkpoint is of {state['world']} processes, this run has {ranks.world}: go on with "
                         f"as many")  # fmt: skip
    if state["order"] != run.order:
        raise ReskdError(f"{config.output}: the clips of {config.data.train}, or what {config.data.cache or 'it'} has "
                         f"of them, are not those that the run began with: put them back, or delete "
                         f"{config.output} to begin anew")  # fmt: skip
    own = state["ranks"][ranks.rank]
    student.model.load_state_dict(state["model"])
    student.model.load_state_dict(own["buffers"], strict=False)
    if student.adapter:
        student.adapter.load_state_dict(state["adapter"])
    if run.ema:
        run.ema.module.load_state_dict(state["ema"])
    run.optimizer.load_state_dict(state["optimizer"])
    restore_random_state(own["random"])
    run.random = torch_state()
    sums = {n: v.to(ranks.device) for n, v in own["sums"].items()}
    run.progress = Progress(state["step"], state["best"], sums, own["summed"], own["failed"])
