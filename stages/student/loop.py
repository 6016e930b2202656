"""The training loop: micro-batches in, checkpoints and metrics out. It trains one student, or several on one stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from cache.errors import ReskdError
from stages.distill.targets import loss_terms
from stages.metrics.accuracy import headline
from stages.metrics.scoring import ScoredModel
from stages.runtime.distributed import Ranks, fast_kernels, wait_for
from stages.runtime.interrupt import Interrupted, stop_requested
from stages.runtime.log import RunLog
from stages.runtime.progress import progress_bar
from stages.runtime.terminal import console
from stages.stream.batch import Batch
from stages.stream.random_label import random_labels
from stages.student.checkpoint import save_checkpoint
from stages.student.failures import failure_lines, for_each_run, raise_failures, unfinished_runs
from stages.student.training_run import TrainingRun, check_finite, remember_state

SAVE_SECONDS = 10  # an epoch that ends sooner after a checkpoint gets none: short epochs would pay too much for it
STOP_SECONDS = 10  # a signal to one of several ranks is known to all by then, at the pace of the last log row


class NoBatch(ReskdError):
    """Clips to train or to validate on can't be had. The runs are as they were before the step, or before validation."""


def fit(
    runs: Sequence[TrainingRun],
    batches_from: Callable[[tuple[int, int]], Iterable[Batch]],
    steps_per_epoch: int,
    *,
    teach: Callable[[Batch], Batch] | None,
    validate: Callable[[Sequence[ScoredModel]], list[dict | Exception]] | None,
    go_on: str = "go on with --resume",
) -> None:
    """Train the students of `runs`, in place, on one stream of batches. Each becomes what it would become alone.

    `batches_from((epoch, step in it))` yields micro-batches up to the end of the longest run. `teach` adds the targets of
    a teacher in the loop to a batch on the device. `validate` gives the metrics of nets in eval mode.
    A student that resumes at a later step skips batches until the others catch up. A student that ends early, or fails,
    doesn't stop the others.

    Raises StudentsFailed once the others are finished; the last good checkpoint of a failed student is kept. Raises
    Interrupted after a SIGINT or SIGTERM, even one at the last step, once every run is saved; `go_on` says what to do then.
    If clips can't be had, the runs of a single process are saved, too, and ReskdError is raised.
    """
    config, ranks = runs[0].config, runs[0].ranks  # of `config`, only keys that all runs share: see cohort.SHARED
    step, total = min(run.progress.step for run in runs), max(run.steps for run in runs)
    first_step = step
    for run in runs if ranks.first else ():
        run.log = RunLog(run.config.folder, run.progress.step)
    batches = iter(batches_from(divmod(step, steps_per_epoch)))
    _do_what_is_left(runs, steps_per_epoch, validate)
    with progress_bar("clips", disable=not ranks.first) as bar, stop_requested() as signal_came:
        task = bar.add_task("train", total=total, completed=step, rate=0.0, note="")
        log_time, log_step, stop, ask_every = time.perf_counter(), step, False, 1
        save_time = log_time
        while not stop and (unfinished := unfinished_runs(runs)):
            next_step = min(run.progress.step for run in unfinished)
            if next_step > step:  # the runs that needed these batches have failed: skip to what the others need
                step = log_step = next_step
                batches = iter(batches_from(divmod(step, steps_per_epoch)))
            active = [run for run in unfinished if run.progress.step == step]  # later ones skip this step's batches
            try:
                with fast_kernels(ranks.device):
                    _optimizer_step(active, runs, batches, step // steps_per_epoch, teach)
                step += 1
                epoch, epoch_ends = step // steps_per_epoch, step % steps_per_epoch == 0
                log_now = epoch_ends or step % config.log_every == 0
                if log_now:
                    rate, ask_every = _log_rows(active, runs, log_time, step - log_step)
                    bar.update(task, completed=step, rate=rate, note=_loss_summary(active))
                due = _due_for_validation(active, epoch) if validate and epoch_ends else []
                improved = bool(due) and _validate(due, runs, epoch, validate)
            except NoBatch as error:
                if ranks.world > 1 or step == first_step:  # others can't save now; nothing is new
                    raise
                for_each_run(active, runs, save_checkpoint)
                raise ReskdError(f"{error}\n{_stopped(runs, step, total, go_on)}") from error
            if log_now:  # the next rate is without the time of validation
                log_time, log_step = time.perf_counter(), step
            stop = _stop(ranks, signal_came, log_now or step % ask_every == 0)
            ending = [run for run in active if run.steps == step]
            save = stop or improved or bool(ending) or step % config.checkpoint_every == 0
            if save or (epoch_ends and ranks.gather(time.perf_counter() - save_time)[0] >= SAVE_SECONDS):
                for_each_run(active, runs, save_checkpoint, share_failures=True)
                save_time = time.perf_counter()
            for_each_run(ending, runs, _finish, share_failures=True)
        if number := max(ranks.gather(signal_came())):
            raise Interrupted(_stopped(runs, step, total, go_on), number)
    raise_failures(runs)


def _do_what_is_left(runs: Sequence[TrainingRun], steps_per_epoch: int, validate: Callable | None) -> None:
    """Validate the runs that were saved since their validation clips couldn't be read, and finish those at their last step."""
    for run in [run for run in runs if run.progress.validation_due]:
        if validate:
            _validate([run], runs, run.progress.step // steps_per_epoch, validate)
        run.progress.validation_due = False
        for_each_run([run], runs, save_checkpoint)
    # A run may have been killed between its last checkpoint and its result.
    for_each_run([run for run in runs if run.progress.step == run.steps], runs, _finish, share_failures=True)


def _optimizer_step(
    active: Sequence[TrainingRun],
    runs: Sequence[TrainingRun],
    batches: Iterator[Batch],
    epoch: int,
    teach: Callable[[Batch], Batch] | None,
) -> None:
    """One optimizer step of each active run, with gradients averaged over `accumulate` micro-batches and the ranks."""
    config = runs[0].config
    for_each_run(active, runs, _begin_step)
    undo = [remember_state(run) for run in active] if config.accumulate > 1 else ()
    for i in range(config.accumulate):
        try:
            batch = next(batches)
        except ReskdError as error:
            for undo_run in undo:
                undo_run()
            raise NoBatch(str(error)) from error
        for label, lines in (("masked", batch.failures), ("fallback", batch.fallbacks)):
            for line in lines:
                console.print(f"[yellow]{label}[/] {line}", highlight=False)
        on_device = batch.copied(runs[0].copy)  # once for all runs
        if teach:
            on_device = teach(on_device)
        last = i + 1 == config.accumulate
        for_each_run(active, runs, lambda run: _backward(run, batch, on_device, epoch, last))  # noqa: B023
    for_each_run(active, runs, _update_weights)


def steps_between_questions(seconds: float) -> int:
    """After how many steps of `seconds` each the ranks ask each other whether a signal came: at most STOP_SECONDS apart."""
    return max(1, int(STOP_SECONDS / seconds))


def _stop(ranks: Ranks, signal_came: Callable[[], int], ask: bool) -> bool:
    """Whether a signal came to any rank. `ask`: the others, too; to ask at every step would make short steps wait."""
    if ranks.world == 1:
        return bool(signal_came())
    return ask and ranks.any(bool(signal_came()))


def _begin_step(run: TrainingRun) -> None:
    run.schedule.step_update(run.progress.step)
    run.optimizer.zero_grad(set_to_none=True)


def _backward(run: TrainingRun, batch: Batch, on_device: Batch, epoch: int, last: bool) -> None:
    """Add the gradients of a micro-batch. `on_device`: the same batch on the device; `last`: the last one of the step."""
    config, ranks = run.config, run.ranks
    weights = config.losses.weights(run.progress.step / run.steps)
    run.progress.failed_clips += len(batch.failures)
    on_device = on_device.with_rendering(run.rendering)
    if config.losses.random_label:
        on_device = replace(on_device, labels=run.copy(random_labels(batch, config.seed, epoch)))
    with ranks.without_sync(run.wrapped, skip=not last):
        with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=run.amp):
            output = run.wrapped(on_device.clips)
        terms = loss_terms(output, on_device, config.losses, run.decoder)
        loss = sum(weights[name] * value for name, value in terms.items())
        run.progress.add({"loss": loss, **terms})
        if ranks.device.type == "cpu" and ranks.world == 1:
            # On a GPU this check would wait for the device. With several ranks, one that stops here would leave the
            # others waiting for its gradients. In both cases the next log row or checkpoint makes the check.
            check_finite(run, run.progress.sums)
        (loss / config.accumulate).backward()


def _update_weights(run: TrainingRun) -> None:
    if run.config.optim.clip_grad:
        torch.nn.utils.clip_grad_norm_(run.wrapped.parameters(), run.config.optim.clip_grad)
    run.optimizer.step()
    run.progress.step += 1
    if run.ema:
        run.ema.update(run.student.model, step=run.progress.step)


def _due_for_validation(active: Sequence[TrainingRun], epoch: int) -> list[TrainingRun]:
    """The runs that have not failed and are validated after this epoch."""
    healthy = [run for run in active if run.failure is None]
    return [run for run in healthy if epoch % run.config.schedule.val_every == 0 or run.progress.step == run.steps]


def _validate(due: Sequence[TrainingRun], runs: Sequence[TrainingRun], epoch: int, validate: Callable) -> bool:
    """Score the runs on one stream of validation clips. Save a run's weights if they are its best so far.

    Returns whether any are: then a checkpoint must follow, which knows of them. Raises NoBatch; the runs are still due then.
    """
    before = [run.progress.best for run in due]
    for run in due:
        run.ranks.average_statistics(run.evaluated)  # what is scored is what is saved
    try:
        metrics_of = validate([ScoredModel(run.scored.eval(), run.rendering, run.amp) for run in due])
    except ReskdError as error:
        for run in due:
            run.progress.validation_due = True
        raise NoBatch(str(error)) from error
    for run in due:
        run.wrapped.train()
    scores = {id(run): metrics for run, metrics in zip(due, metrics_of, strict=True)}

    def keep_score(run: TrainingRun) -> None:
        if isinstance(score := scores[id(run)], Exception):
            raise score
        metrics, best = {"epoch": epoch, **score}, run.progress.best
        if best is None or metrics[metrics["headline"]] > best[metrics["headline"]]:
            run.progress.best = metrics
            if run.ranks.first:
                run.save_weights("best", run.evaluated, metrics)
        if run.log:
            run.log.row("val", run.progress.step, metrics)
            student = f"{run.config.output.name}  " if len(runs) > 1 else ""
            console.print(f"{student}epoch {epoch}/{run.config.schedule.epochs}  val {headline(metrics)}")

    for_each_run(due, runs, keep_score, share_failures=True)
    return any(run.progress.best is not best for run, best in zip(due, before, strict=True))


def _finish(run: TrainingRun) -> None:
    run.ranks.average_statistics(run.evaluated)
    failed_clips = run.ranks.sum(torch.tensor(run.progress.failed_clips, device=run.ranks.device))
    if run.ranks.first:
        run.save_weights("last", run.evaluated, {"epoch": run.config.schedule.epochs})
        run.log.close()
    run.on_finish(run.progress, int(failed_clips))


def _log_rows(
    active: Sequence[TrainingRun], runs: Sequence[TrainingRun], since: float, steps: int
) -> tuple[float, int]:
    """Log a row of each run. Returns the clips per second of the `steps` since the time `since`, and the steps from one
    question of the ranks to the next."""
    config, ranks = runs[0].config, runs[0].ranks
    wait_for(ranks.device)
    seconds = (time.perf_counter() - since) / steps
    rate = config.batch_size * config.accumulate * ranks.world / seconds
    ask_every = steps_between_questions(max(ranks.gather(seconds)))
    for_each_run(active, runs, lambda run: _log_row(run, rate), share_failures=True)
    return rate, ask_every


def _log_row(run: TrainingRun, rate: float) -> None:
    """Log the means since the last row over micro-batches and ranks, each term beside its weight."""
    progress, ranks = run.progress, run.ranks
    names = list(progress.sums)
    means = ranks.mean(torch.stack([progress.sums[n].float() for n in names]) / progress.summed).cpu()
    failed_clips = int(ranks.sum(torch.tensor(progress.failed_clips, device=ranks.device)))
    check_finite(run, dict(zip(names, means, strict=True)))  # a NaN of one rank is in the mean of all ranks
    values = dict(zip(names, means.tolist(), strict=True))
    progress.sums, progress.summed, progress.logged_loss = {}, 0, values["loss"]
    weights = run.config.losses.weights((progress.step - 1) / run.steps)  # of the last step
    terms = {n: {"value": values[n], "weight": w} for n, w in weights.items()}
    lr = run.optimizer.param_groups[0]["lr"]
    if run.log:
        row = {"loss": values["loss"], "terms": terms, "failed_clips": failed_clips, "lr": lr, "clips_per_s": rate}
        run.log.row("train", progress.step, row)


def _loss_summary(active: Sequence[TrainingRun]) -> str:
    losses = [run.progress.logged_loss for run in active if run.failure is None]
    if len(losses) < 2:
        return "".join(f"loss {loss:.4f}" for loss in losses)
    return f"{len(losses)} students, loss {min(losses):.4f} to {max(losses):.4f}"


def _stopped(runs: Sequence[TrainingRun], step: int, total: int, go_on: str) -> str:
    """What is said of runs that are saved before their end."""
    unfinished = ", ".join(str(run.config.output) for run in unfinished_runs(runs))
    message = f"{unfinished or 'all students are finished'}: stopped at step {step} of {total}; all is saved, {go_on}"
    failed = sum(run.failure is not None for run in runs)
    return f"{message}\n{failed} failed:{failure_lines(runs)}" if failed else message
