"""The training loop: micro-batches in, checkpoints and metrics out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3

from cache.errors import ReskdError
from stages.config import TrainConfig
from stages.data.join import Batch
from stages.data.labels import with_one_label
from stages.distill.student import Student
from stages.distill.targets import Meaning, loss_terms
from stages.training.distributed import Ranks
from stages.training.log import RunLog, console, progress_bar
from stages.training.metrics import headline
from stages.training.optim import build_optimizer, build_schedule
from stages.training.run import Progress, Run, check_finite, restore_run, save_run


class Interrupted(ReskdError):
    """The run was asked to stop, and has saved where it stands."""


def fit(
    student: Student,
    batches: Callable[[tuple[int, int]], Iterable[Batch]],
    steps_per_epoch: int,
    config: TrainConfig,
    ranks: Ranks,
    *,
    order: str,
    state: dict | None,
    meaning: Meaning,
    teach: Callable[[Batch], Batch] | None,
    validate: Callable[[torch.nn.Module], dict[str, float]] | None,
    save_weights: Callable[[str, torch.nn.Module, dict], None],
) -> Progress:
    """Train `student` (on the ranks' device) in place.

    `batches((epoch, step))` yields micro-batches from there to the end of the run; `state` is a checkpoint to go on
    from, whose order must have the digest `order`; `meaning` is that of the targets; `teach` gives a batch on the device
    its targets, where a teacher is in the loop; `validate` gives metrics of a model in eval mode; `save_weights("best" |
    "last", model, notes)` stores one.

    Raises ReskdError where the loss is not finite (the checkpoint before it is kept), and Interrupted after a
    SIGINT or SIGTERM, once the run is saved.
    """
    global_batch = config.batch_size * config.accumulate * ranks.world
    optimizer = build_optimizer(student, config.optim, global_batch)
    schedule = build_schedule(optimizer, config.schedule, steps_per_epoch)
    ema = ModelEmaV3(student.model, decay=config.ema, use_warmup=True, exclude_buffers=True) if config.ema else None
    run = Run(config, ranks, order, student, ema, optimizer, meaning, teach)
    if state:
        restore_run(run, state)
    wrapped = ranks.wrap(student)
    if config.compile:
        wrapped = torch.compile(wrapped)

    progress, epochs, total = run.progress, config.schedule.epochs, config.schedule.epochs * steps_per_epoch
    stream = iter(batches(divmod(progress.step, steps_per_epoch)))
    log = RunLog(config.output, progress.step) if ranks.first else None
    with progress_bar("clips", disable=not ranks.first) as bar, _stop_requested() as stop_requested:
        task = bar.add_task("train", total=total, completed=progress.step, rate=0.0, note="")
        since, since_step = time.perf_counter(), progress.step
        while progress.step < total:
            schedule.step_update(progress.step)
            _optimizer_step(run, wrapped.train(), stream, progress.step // steps_per_epoch)
            progress.step += 1
            if ema:
                ema.update(student.model, step=progress.step)
            epoch, ended = progress.step // steps_per_epoch, progress.step % steps_per_epoch == 0
            logged = ended or progress.step % config.log_every == 0

            if logged:
                rate = (progress.step - since_step) * global_batch / (time.perf_counter() - since)
                row = _close_row(run) | {"lr": optimizer.param_groups[0]["lr"], "clips_per_s": rate}
                if log:
                    log.row("train", progress.step, row)
                bar.update(task, completed=progress.step, rate=rate, note=f"loss {row['loss']:.4f}")
            if validate and ended and (epoch % config.schedule.val_every == 0 or epoch == epochs):
                metrics = _validated(run, epoch, validate, save_weights)
                if log:
                    log.row("val", progress.step, metrics)
                    console.print(f"epoch {epoch}/{epochs}  loss {row['loss']:.4f}  val {headline(metrics)}")
            if logged:
                since, since_step = time.perf_counter(), progress.step

            # Ranks agree on stopping only where they meet anyway: asking at every step would cost each one a wait.
            stop = stop_requested() if ranks.world == 1 else logged and ranks.any(stop_requested())
            if ended or stop or progress.step % config.checkpoint_every == 0:
                save_run(run)
            if stop and progress.step < total:
                raise Interrupted(f"{config.output}: stopped at step {progress.step} of {total}; all is saved, go on "
                                  f"with --resume")  # fmt: skip
    ranks.average_statistics(run.evaluated)
    if ranks.first:
        save_weights("last", run.evaluated, {"epoch": epochs})
        log.close()
    return progress


def _optimizer_step(run: Run, model: torch.nn.Module, stream: Iterator[Batch], epoch: int) -> None:
    """Gradients of `accumulate` micro-batches, averaged over them and the ranks, and one step.

    `model` is the student as it is wrapped for several ranks, and compiled.
    """
    config, ranks, progress, weights = run.config, run.ranks, run.progress, run.config.losses.weights()
    run.optimizer.zero_grad(set_to_none=True)
    for i in range(config.accumulate):
        batch = next(stream)
        progress.note(batch)
        if config.losses.random_label:
            batch = with_one_label(batch, config.seed, epoch)
        batch = batch.to(ranks.device)
        if run.teach:
            batch = run.teach(batch)
        with ranks.without_sync(model, skip=i + 1 < config.accumulate):
            with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=autocast(config, ranks)):
                answer = model(batch.clips)
            terms = loss_terms(answer, batch, config.losses, run.meaning)
            loss = sum(weights[name] * value for name, value in terms.items())
            progress.add({"loss": loss, **terms})
            if ranks.device.type == "cpu":  # elsewhere the look would cost a wait: see check_finite
                check_finite(run)
            (loss / config.accumulate).backward()
    if config.optim.clip_grad:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
    run.optimizer.step()


def autocast(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether forwards run in bfloat16."""
    return config.amp == "auto" and ranks.device.type == "cuda"


def _validated(run: Run, epoch: int, validate: Callable, save_weights: Callable) -> dict[str, float]:
    """Metrics of what is evaluated; it is saved where no epoch was better."""
    run.ranks.average_statistics(run.evaluated)  # what is scored is what is saved
    metrics = {"epoch": epoch, **validate(run.evaluated.eval())}
    best, by = run.progress.best, metrics["headline"]
    if best is None or metrics[by] > best[by]:
        run.progress.best = metrics
        if run.ranks.first:
            save_weights("best", run.evaluated, metrics)
    return metrics


def _close_row(run: Run) -> dict:
    """The log row since the last one: means over micro-batches and ranks, each term beside its weight."""
    check_finite(run)
    progress, ranks = run.progress, run.ranks
    names = list(progress.sums)
    means = ranks.mean(torch.stack([progress.sums[n].float() for n in names]) / progress.summed).tolist()
    values = dict(zip(names, means, strict=True))
    failed = int(ranks.sum(torch.tensor(progress.failed, device=ranks.device)))
    progress.sums, progress.summed = {}, 0
    terms = {n: {"value": values[n], "weight": w} for n, w in run.config.losses.weights().items()}
    return {"loss": values["loss"], "terms": terms, "failed_clips": failed}


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask the loop to stop at the next step instead of killing it; a second one kills."""
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody sends it signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
