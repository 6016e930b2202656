"""A run at work: what its steps change, and its last.pt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3

from cache.errors import ReskdError
from stages.config import TrainConfig
from stages.data.join import Batch
from stages.distill.student import Student
from stages.distill.targets import Meaning
from stages.training.distributed import Ranks
from stages.training.log import console
from stages.training.state import random_state, restore_random_state, save_state


@dataclass
class Progress:
    """Where a run stands, and the sums of the log row in the making."""

    step: int = 0  # optimizer steps taken
    best: dict | None = None  # metrics of the best validation so far, by their headline
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    summed: int = 0  # micro-batches in `sums`
    failed: int = 0  # clips which this rank could not decode

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.summed += 1

    def note(self, batch: Batch) -> None:
        """Count, and say, what went wrong with clips of a batch."""
        self.failed += len(batch.failures)
        for line in batch.failures:
            console.print(f"[yellow]masked[/] {line}", highlight=False)
        for line in batch.fallbacks:
            console.print(f"[yellow]fallback[/] {line}", highlight=False)


@dataclass
class Run:
    """A run at work: what its steps change, and last.pt holds, beside what they follow."""

    config: TrainConfig
    ranks: Ranks
    order: str  # digest of the order of its batches
    student: Student
    ema: ModelEmaV3 | None  # of the model alone: an adapter is of no use afterwards
    optimizer: torch.optim.Optimizer
    meaning: Meaning  # of the targets
    teach: Callable[[Batch], Batch] | None = None  # a teacher in the loop: gives a batch its targets
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> torch.nn.Module:
        return self.ema.module if self.ema else self.student.model


def check_finite(run: Run) -> None:
    """Raise before a checkpoint is written over by one whose weights have met a NaN."""
    config, progress = run.config, run.progress
    bad = [name for name, value in progress.sums.items() if not torch.isfinite(value)]
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
    """Write last.pt. BatchNorm's buffers, generators, and sums are each rank's own: all are kept."""
    check_finite(run)
    config, progress, model, adapter = run.config, run.progress, run.student.model, run.student.adapter
    if not all(bool(p.isfinite().all()) for p in run.student.parameters()):
        raise ReskdError(f"{config.output}: weights are not finite after step {progress.step}; {_kept(config)}; lower "
                         f"optim.lr or set optim.clip_grad")  # fmt: skip
    buffers = {name: value.cpu() for name, value in model.named_buffers()}
    own = {"random": random_state(), "buffers": buffers, "failed": progress.failed,
           "sums": {n: v.cpu() for n, v in progress.sums.items()}, "summed": progress.summed}  # fmt: skip
    each = run.ranks.gather(own)
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


def restore_run(run: Run, state: dict) -> None:
    """Take up a run where `save_run` left it. Raises ReskdError for other ranks or clips than it had."""
    config, ranks, student = run.config, run.ranks, run.student
    if state["world"] != ranks.world:
        raise ReskdError(f"the checkpoint is of {state['world']} processes, this run has {ranks.world}: resume with "
                         f"as many")  # fmt: skip
    if state["order"] != run.order:
        raise ReskdError(f"{config.output}: the clips of {config.data.train}, or what {config.data.cache or 'it'} has "
                         f"of them, are not those that the run began with: put them back, or begin anew with "
                         f"--overwrite")  # fmt: skip
    own = state["ranks"][ranks.rank]
    student.model.load_state_dict(state["model"])
    student.model.load_state_dict(own["buffers"], strict=False)
    if student.adapter:
        student.adapter.load_state_dict(state["adapter"])
    if run.ema:
        run.ema.module.load_state_dict(state["ema"])
    run.optimizer.load_state_dict(state["optimizer"])
    restore_random_state(own["random"])
    sums = {n: v.to(ranks.device) for n, v in own["sums"].items()}
    run.progress = Progress(state["step"], state["best"], sums, own["summed"], own["failed"])
