"""What happens when one of several students fails: it is taken out, on every rank, and the others train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cache.errors import ReskdError
from stages.runtime.terminal import console
from stages.student.training_run import TrainingRun, own_random_generators


class StudentsFailed(ReskdError):
    """Some students failed, and all others are finished. With several ranks, every rank raises it."""


def for_each_run(
    chosen: Sequence[TrainingRun],
    runs: Sequence[TrainingRun],
    work: Callable[[TrainingRun], object],
    *,
    share_failures: bool = False,
) -> None:
    """Do `work` for every chosen run that has not failed. A run whose work fails is taken out; the others go on.

    `runs` are all runs of the cohort. The error of a single run on a single rank is raised as it is.

    `share_failures` makes a difference with several ranks only. If it is True, the ranks tell each other after the work
    which runs have failed, and a run that failed on one rank is taken out on all ranks. Such work must do its collectives
    first: a rank that failed before a collective would leave the other ranks waiting in it. If it is False, an error
    ends all ranks: it may be the error of one rank alone, and the other ranks would wait for that rank.
    """
    ranks, own_failures = runs[0].ranks, {}
    for i, run in enumerate(chosen):
        if run.failure is not None:
            continue
        try:
            with own_random_generators(run):
                work(run)
        except Exception as error:
            nobody_else = len(runs) == 1 and ranks.world == 1
            if nobody_else or (ranks.world > 1 and not share_failures):
                raise
            _take_out(run, error)
            own_failures[i] = run.failure
    for i, error in (ranks.failed(own_failures) if share_failures else own_failures).items():
        if chosen[i].failure is None:  # it failed on another rank
            _take_out(chosen[i], error)
        if ranks.first and len(runs) > 1:
            reason = f"{chosen[i].config.output}: {type(error).__name__}: {error}"
            console.print(f"[bold red]failed[/] {reason}; the others go on")


def _take_out(run: TrainingRun, error: Exception) -> None:
    """Mark a run as failed, and free the memory that its training took."""
    run.failure = error.with_traceback(None)  # the frames of a traceback hold the step's activations
    error.__context__ = error.__cause__ = None
    run.optimizer.zero_grad(set_to_none=True)
    run.optimizer.state.clear()
    run.wrapped = run.student.to("cpu")  # frees the gradient buckets of DistributedDataParallel
    if run.ema:
        run.ema.module.to("cpu")


def unfinished_runs(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """The runs that have steps to do and have not failed."""
    return [run for run in runs if run.failure is None and run.progress.step < run.steps]


def failure_lines(runs: Sequence[TrainingRun]) -> str:
    """A line for each run that failed: its folder and the reason. Empty if none failed."""
    return "".join(f"\n  {run.config.output}: {run.failure}" for run in runs if run.failure)


def raise_failures(runs: Sequence[TrainingRun]) -> None:
    """Raise StudentsFailed if any run has failed."""
    failed = [run for run in runs if run.failure]
    if failed and len(runs) == 1:
        raise StudentsFailed(str(failed[0].failure))
    if failed:
        raise StudentsFailed(
            f"{len(failed)} of {len(runs)} students failed, all others are finished:{failure_lines(runs)}"
        )
