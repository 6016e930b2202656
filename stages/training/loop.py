"""The training loop: micro-batches in, checkpoints and metrics out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3

from cache.errors import ReskdError
from stages.config import TrainConfig
from stages.data.join import Batch
from stages.distill.targets import loss_terms
from stages.models import VideoModel
from stages.training.distributed import Ranks
from stages.training.log import RunLog, console, progress_bar
from stages.training.optim import build_optimizer, build_schedule
from stages.training.state import random_state, restore_random_state, save_state


class Interrupted(ReskdError):
    """The run was asked to stop, and has saved where it stands."""


@dataclass
class Progress:
    """Where a run stands, and the sums of the log row in the making."""

    step: int = 0  # optimizer steps taken
    best: float = -1.0  # top-1
    best_epoch: int = 0
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


def fit(
    model: VideoModel,
    batches: Callable[[tuple[int, int]], Iterable[Batch]],
    steps_per_epoch: int,
    config: TrainConfig,
    ranks: Ranks,
    *,
    order: str,
    state: dict | None,
    validate: Callable[[torch.nn.Module], dict[str, float]] | None,
    save_weights: Callable[[str, torch.nn.Module, dict], None],
) -> Progress:
    """Train `model` (on the ranks' device) in place.

    `batches((epoch, step))` yields micro-batches from there to the end of the run; `state` is a checkpoint to go on
    from, whose order must have the digest `order`; `validate` gives metrics of a model in eval mode;
    `save_weights("best" | "last", model, notes)` stores one.

    Raises ReskdError where the loss is not finite (the checkpoint before it is kept), and Interrupted after a
    SIGINT or SIGTERM, once the run is saved.
    """
    global_batch = config.batch_size * config.accumulate * ranks.world
    optimizer = build_optimizer(model, config.optim, global_batch)
    schedule = build_schedule(optimizer, config.schedule, steps_per_epoch)
    ema = ModelEmaV3(model, decay=config.ema, use_warmup=True, exclude_buffers=True) if config.ema else None
    evaluated = ema.module if ema else model
    progress = _restore(state, order, model, ema, optimizer, config, ranks) if state else Progress()
    trained = ranks.wrap(model)
    if config.compile:
        trained = torch.compile(trained)

    epochs, total = config.schedule.epochs, config.schedule.epochs * steps_per_epoch
    stream = iter(batches(divmod(progress.step, steps_per_epoch)))
    log = RunLog(config.output, progress.step) if ranks.first else None
    bar = progress_bar("clips", disable=not ranks.first)
    with bar, _stop_requested() as stop_requested:
        task = bar.add_task("train", total=total, completed=progress.step, rate=0.0, note="")
        since, since_step = time.perf_counter(), progress.step
        while progress.step < total:
            schedule.step_update(progress.step)
            _optimizer_step(trained.train(), optimizer, stream, progress, config, ranks)
            progress.step += 1
            if ema:
                ema.update(model, step=progress.step)
            epoch, ended = progress.step // steps_per_epoch, progress.step % steps_per_epoch == 0
            logged = ended or progress.step % config.log_every == 0

            if logged:
                rate = (progress.step - since_step) * global_batch / (time.perf_counter() - since)
                since, since_step = time.perf_counter(), progress.step
                row = _close_row(progress, config, ranks)
                if log:
                    log.row("train", progress.step, row | {"lr": _rate(optimizer), "clips_per_s": rate})
                bar.update(task, completed=progress.step, rate=rate, note=f"loss {row['loss']:.4f}")

            if validate and ended and (epoch % config.schedule.val_every == 0 or epoch == epochs):
                ranks.average_statistics(evaluated)  # what is scored is what is saved
                metrics = {"epoch": epoch, **validate(evaluated.eval())}
                better = metrics["top1"] > progress.best
                if better:
                    progress.best, progress.best_epoch = metrics["top1"], epoch
                if log:
                    log.row("val", progress.step, metrics)
                    console.print(f"epoch {epoch}/{epochs}  loss {row['loss']:.4f}  val top-1 {metrics['top1']:.2f} %")
                    if better:
                        save_weights("best", evaluated, metrics)
                since, since_step = time.perf_counter(), progress.step

            # Ranks agree on stopping only where they meet anyway: asking at every step would cost each one a wait.
            stop = stop_requested() if ranks.world == 1 else logged and ranks.any(stop_requested())
            if ended or stop or progress.step % config.checkpoint_every == 0:
                _save(progress, order, model, ema, optimizer, config, ranks)
            if stop and progress.step < total:
                raise Interrupted(f"{config.output}: stopped at step {progress.step} of {total}; all is saved, go on "
                                  f"with --resume")  # fmt: skip
    ranks.average_statistics(evaluated)
    if ranks.first:
        save_weights("last", evaluated, {"epoch": epochs})
        log.close()
    return progress


def _optimizer_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: Iterator[Batch],
    progress: Progress,
    config: TrainConfig,
    ranks: Ranks,
) -> None:
    """Gradients of `accumulate` micro-batches, averaged over them and the ranks, and one step."""
    weights = config.losses.weights()
    optimizer.zero_grad(set_to_none=True)
    for i in range(config.accumulate):
        batch = next(stream)
        progress.note(batch)
        batch = batch.to(ranks.device)
        with ranks.without_sync(model, skip=i + 1 < config.accumulate):
            with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=autocast(config, ranks)):
                output = model(batch.clips)
            terms = loss_terms(output, batch, config.losses)
            loss = sum(weights[name] * value for name, value in terms.items())
            progress.add({"loss": loss, **terms})
            if ranks.device.type == "cpu":  # elsewhere the look would cost a wait: see _check_finite
                _check_finite(progress, config)
            (loss / config.accumulate).backward()
    if config.optim.clip_grad:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
    optimizer.step()


def autocast(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether forwards run in bfloat16."""
    return config.amp == "auto" and ranks.device.type == "cuda"


def _close_row(progress: Progress, config: TrainConfig, ranks: Ranks) -> dict:
    """The log row since the last one: means over micro-batches and ranks, each term beside its weight."""
    _check_finite(progress, config)
    names = list(progress.sums)
    means = ranks.mean(torch.stack([progress.sums[n].float() for n in names]) / progress.summed).tolist()
    values = dict(zip(names, means, strict=True))
    failed = int(ranks.sum(torch.tensor(progress.failed, device=ranks.device)))
    progress.sums, progress.summed = {}, 0
    terms = {n: {"value": values[n], "weight": w} for n, w in config.losses.weights().items()}
    return {"loss": values["loss"], "terms": terms, "failed_clips": failed}


def _check_finite(progress: Progress, config: TrainConfig) -> None:
    """Raise before a checkpoint is written over by one whose weights have met a NaN."""
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


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def _save(progress: Progress, order: str, model, ema, optimizer, config: TrainConfig, ranks: Ranks) -> None:
    """Write last.pt. BatchNorm's buffers, generators, and sums are each rank's own: all are kept."""
    _check_finite(progress, config)
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ReskdError(f"{config.output}: weights are not finite after step {progress.step}; {_kept(config)}; lower "
                         f"optim.lr or set optim.clip_grad")  # fmt: skip
    buffers = {name: value.cpu() for name, value in model.named_buffers()}
    own = {"random": random_state(), "buffers": buffers, "failed": progress.failed,
           "sums": {n: v.cpu() for n, v in progress.sums.items()}, "summed": progress.summed}  # fmt: skip
    each = ranks.gather(own)
    if ranks.first:
        state = {
            "world": ranks.world,
            "order": order,
            "step": progress.step,
            "best": progress.best,
            "best_epoch": progress.best_epoch,
            "model": model.state_dict(),
            "ema": ema.module.state_dict() if ema else None,
            "optimizer": optimizer.state_dict(),
            "ranks": each,
        }
        save_state(config.output / "last.pt", state)


def _restore(state: dict, order: str, model, ema, optimizer, config: TrainConfig, ranks: Ranks) -> Progress:
    if state["world"] != ranks.world:
        raise ReskdError(f"the checkpoint is of {state['world']} processes, this run has {ranks.world}: resume with "
                         f"as many")  # fmt: skip
    if state["order"] != order:
        raise ReskdError(f"{config.output}: the clips of {config.data.train}, or what {config.data.cache or 'it'} has "
                         f"of them, are not those that the run began with: put them back, or begin anew with "
                         f"--overwrite")  # fmt: skip
    own = state["ranks"][ranks.rank]
    model.load_state_dict(state["model"])
    model.load_state_dict(own["buffers"], strict=False)
    if ema:
        ema.module.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    restore_random_state(own["random"])
    sums = {n: v.to(ranks.device) for n, v in own["sums"].items()}
    return Progress(state["step"], state["best"], state["best_epoch"], sums, own["summed"], own["failed"])


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
