"""The training loop: micro-batches in, checkpoints and metrics out; for one student, or for several on one stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from rich.markup import escape

from cache.errors import ReskdError
from stages.distill.targets import loss_terms
from stages.metrics.accuracy import headline
from stages.metrics.scoring import Net
from stages.runtime.interrupt import Interrupted, stop_requested
from stages.runtime.log import RunLog, console, progress_bar
from stages.stream.batch import Batch
from stages.stream.random_label import with_one_label
from stages.student.run import Run, check_finite, leave, own_draws, save_run


class Failed(ReskdError):
    """Students failed while the others went on to their ends. Of several ranks every one raises it."""


def fit(
    runs: Sequence[Run],
    batches: Callable[[tuple[int, int]], Iterable[Batch]],
    steps_per_epoch: int,
    *,
    teach: Callable[[Batch], Batch] | None,
    validate: Callable[[Sequence[Net]], list[dict | Exception]] | None,
    go_on: str = "go on with --resume",
) -> None:
    """Train the students of `runs`, in place, on one stream; each as it would be alone.

    `batches((epoch, step))` yields micro-batches from there to the end of the longest run; `teach` gives a batch on the
    device its targets, where a teacher is in the loop; `validate` gives metrics of nets in eval mode. A run that a
    checkpoint has further than others waits for the stream; one that ends early, or fails, leaves the others to go on.

    Raises Failed where a run of several did, once the others are at their ends (its last good checkpoint is kept), and
    Interrupted after a SIGINT or SIGTERM, once every run is saved, at the very end, too: `go_on` says what then.
    """
    config, ranks = runs[0].config, runs[0].ranks  # what runs share: see shared.SHARED
    global_batch = config.batch_size * config.accumulate * ranks.world
    step, total = min(run.progress.step for run in runs), max(run.steps for run in runs)
    for run in runs if ranks.first else ():
        run.log = RunLog(run.config.output, run.progress.step)
    stream = iter(batches(divmod(step, steps_per_epoch)))
    _each([run for run in runs if run.progress.step == run.steps], runs, _finish, agreed=True)
    with progress_bar("clips", disable=not ranks.first) as bar, stop_requested() as asked:
        task = bar.add_task("train", total=total, completed=step, rate=0.0, note="")
        since, since_step, stop = time.perf_counter(), step, False
        while not stop and (left := _unfinished(runs)):
            ahead = min(run.progress.step for run in left)
            if ahead > step:  # who was behind has failed: skip what it needed
                step = since_step = ahead
                stream = iter(batches(divmod(step, steps_per_epoch)))
            at_work = [run for run in left if run.progress.step == step]
            _optimizer_step(at_work, runs, stream, step // steps_per_epoch, teach)
            step += 1
            epoch, ended = step // steps_per_epoch, step % steps_per_epoch == 0
            logged = ended or step % config.log_every == 0

            if logged:
                rate = (step - since_step) * global_batch / (time.perf_counter() - since)
                _each(at_work, runs, lambda run: _log_row(run, rate), agreed=True)  # noqa: B023
                bar.update(task, completed=step, rate=rate, note=_note(at_work))
            due = [run for run in at_work if run.failure is None and ended and _is_due(run, epoch, step)]
            if validate and due:
                _validate(due, runs, epoch, validate)
            if logged:
                since, since_step = time.perf_counter(), step

            # Ranks agree on stopping only where they meet anyway: asking at every step would cost each one a wait.
            stop = asked() if ranks.world == 1 else logged and ranks.any(asked())
            if ended or stop or step % config.checkpoint_every == 0:
                _each(at_work, runs, save_run, agreed=True)
            _each([run for run in at_work if run.steps == step], runs, _finish, agreed=True)
        failed = [run for run in runs if run.failure]
        lines = "".join(f"\n  {run.config.output}: {run.failure}" for run in failed)
        if stop or ranks.any(asked()):
            left = ", ".join(str(run.config.output) for run in _unfinished(runs))
            where = f"{left}: stopped" if left else "all at their ends: stopped"
            said = f"{where} at step {step} of {total}; all is saved, {go_on}"
            raise Interrupted(f"{said}\n{len(failed)} failed:{lines}" if failed else said)
    if failed:
        several = f"{len(failed)} of {len(runs)} students failed, all others are finished:{lines}"
        raise Failed(several if len(runs) > 1 else str(failed[0].failure))


def _unfinished(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.failure is None and run.progress.step < run.steps]


def _each(chosen: Sequence[Run], runs: Sequence[Run], work: Callable[[Run], object], agreed: bool = False) -> None:
    """`work` for every chosen run that hasn't failed; where one fails and isn't the only one of `runs`, it is taken out.

    `agreed`: among several ranks, whatever fails on any of them fails on all. Such work must not fail before its
    collectives. An error in any other work stops all ranks: one may be alone in meeting it, and the others would wait.
    """
    ranks, failed = runs[0].ranks, {}
    for i, run in enumerate(chosen):
        if run.failure is not None:
            continue
        try:
            with own_draws(run):
                work(run)
        except Exception as error:
            alone = len(runs) == 1 and ranks.world == 1
            if alone or (ranks.world > 1 and not agreed):
                raise
            leave(run, error)
            failed[i] = run.failure
    for i, error in (ranks.failed(failed) if agreed else failed).items():
        if chosen[i].failure is None:  # on another rank
            leave(chosen[i], error)
        if ranks.first and len(runs) > 1:
            said = escape(f"{chosen[i].config.output}: {type(error).__name__}: {error}")
            console.print(f"[bold red]out[/] {said}; the others go on")


def _optimizer_step(
    at_work: Sequence[Run], runs: Sequence[Run], stream: Iterator[Batch], epoch: int, teach: Callable | None
) -> None:
    """Gradients of `accumulate` micro-batches, averaged over them and the ranks, and one step, of each run."""
    config, device = runs[0].config, runs[0].ranks.device
    _each(at_work, runs, _begin)
    for i in range(config.accumulate):
        batch = next(stream)
        for what, lines in (("masked", batch.failures), ("fallback", batch.fallbacks)):
            for line in lines:
                console.print(f"[yellow]{what}[/] {escape(line)}", highlight=False)
        on_device = batch.to(device)  # once for all
        if teach:
            on_device = teach(on_device)
        last = i + 1 == config.accumulate
        _each(at_work, runs, lambda run: _backward(run, batch, on_device, epoch, last))  # noqa: B023
    _each(at_work, runs, _update)


def _begin(run: Run) -> None:
    run.wrapped.train()
    run.schedule.step_update(run.progress.step)
    run.optimizer.zero_grad(set_to_none=True)


def _backward(run: Run, batch: Batch, on_device: Batch, epoch: int, last: bool) -> None:
    """Add the gradients of a micro-batch, `there` on the device; `last`: of the step."""
    config, ranks, weights = run.config, run.ranks, run.config.losses.weights()
    run.progress.failed += len(batch.failures)
    on_device = on_device.seen_at(run.rendering)
    if config.losses.random_label:
        on_device = replace(on_device, labels=with_one_label(batch, config.seed, epoch).labels.to(ranks.device))
    with ranks.without_sync(run.wrapped, skip=not last):
        with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=run.amp):
            answer = run.wrapped(on_device.clips)
        terms = loss_terms(answer, on_device, config.losses, run.decoder)
        loss = sum(weights[name] * value for name, value in terms.items())
        run.progress.add({"loss": loss, **terms})
        if ranks.device.type == "cpu" and ranks.world == 1:
            # On a GPU the look would cost a wait, and a rank that stops here alone leaves the others in their all-reduce:
            # there the next log row or checkpoint finds it.
            check_finite(run, run.progress.sums)
        (loss / config.accumulate).backward()


def _update(run: Run) -> None:
    if run.config.optim.clip_grad:
        torch.nn.utils.clip_grad_norm_(run.wrapped.parameters(), run.config.optim.clip_grad)
    run.optimizer.step()
    run.progress.step += 1
    if run.ema:
        run.ema.update(run.student.model, step=run.progress.step)


def _is_due(run: Run, epoch: int, step: int) -> bool:
    return epoch % run.config.schedule.val_every == 0 or step == run.steps


def _validate(due: Sequence[Run], runs: Sequence[Run], epoch: int, validate: Callable) -> None:
    """Score what is evaluated of each run, on one stream; save it where no epoch was better."""
    for run in due:
        run.ranks.average_statistics(run.evaluated)  # what is scored is what is saved
    answers = validate([Net(run.evaluated.eval(), run.rendering, run.amp) for run in due])
    scored = {id(run): answer for run, answer in zip(due, answers, strict=True)}

    def keep(run: Run) -> None:
        if isinstance(answer := scored[id(run)], Exception):
            raise answer
        metrics, best = {"epoch": epoch, **answer}, run.progress.best
        if best is None or metrics[metrics["headline"]] > best[metrics["headline"]]:
            run.progress.best = metrics
            if run.ranks.first:
                run.save_weights("best", run.evaluated, metrics)
        if run.log:
            run.log.row("val", run.progress.step, metrics)
            of = f"{run.config.output.name}  " if len(runs) > 1 else ""
            console.print(f"{of}epoch {epoch}/{run.config.schedule.epochs}  val {headline(metrics)}")

    _each(due, runs, keep, agreed=True)


def _finish(run: Run) -> None:
    run.ranks.average_statistics(run.evaluated)
    failed_clips = run.ranks.sum(torch.tensor(run.progress.failed, device=run.ranks.device))
    if run.ranks.first:
        run.save_weights("last", run.evaluated, {"epoch": run.config.schedule.epochs})
        run.log.close()
    run.ended(run.progress, int(failed_clips))


def _log_row(run: Run, rate: float) -> None:
    """The row since the last one: means over micro-batches and ranks, each term beside its weight."""
    progress, ranks = run.progress, run.ranks
    names = list(progress.sums)
    means = ranks.mean(torch.stack([progress.sums[n].float() for n in names]) / progress.summed).cpu()
    failed = int(ranks.sum(torch.tensor(progress.failed, device=ranks.device)))
    check_finite(run, dict(zip(names, means, strict=True)))  # which is not finite on any rank, isn't in the mean
    values = dict(zip(names, means.tolist(), strict=True))
    progress.sums, progress.summed, progress.loss = {}, 0, values["loss"]
    terms = {n: {"value": values[n], "weight": w} for n, w in run.config.losses.weights().items()}
    lr = run.optimizer.param_groups[0]["lr"]
    if run.log:
        row = {"loss": values["loss"], "terms": terms, "failed_clips": failed, "lr": lr, "clips_per_s": rate}
        run.log.row("train", progress.step, row)


def _note(at_work: Sequence[Run]) -> str:
    losses = [run.progress.loss for run in at_work if run.failure is None]
    if len(losses) < 2:
        return "".join(f"loss {loss:.4f}" for loss in losses)
    return f"{len(losses)} students, loss {min(losses):.4f} to {max(losses):.4f}"
