"""A run's checkpoint last.pt: writing it, and going on from it by the same number of ranks or by another one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cache.errors import ReskdError
from stages.runtime.distributed import Ranks
from stages.runtime.terminal import console
from stages.student.config import TrainConfig
from stages.student.run_folder import stored_accumulate
from stages.student.state import (
    load_state,
    random_state,
    restore_random_state,
    save_state,
    seed_all,
    shared_out,
    torch_state,
)
from stages.student.training_run import Progress, TrainingRun, check_finite, last_good


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
        raise ReskdError(f"{config.output}: weights are not finite after step {progress.step}; {last_good(config)}; "
                         f"lower optim.lr or set optim.clip_grad")  # fmt: skip
    if run.ranks.first:
        run.check_folder()
        checkpoint = {
            "world": run.ranks.world,
            "accumulate": config.accumulate,
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
        save_state(config.folder / "last.pt", checkpoint)


def check_group(config: TrainConfig, ranks: Ranks, resume: bool) -> None:
    """Check, before the run's folder is changed, that a step of a resumed run has as many micro-batches as before.

    Prints it if other ranks compute them. Raises ReskdError with the arithmetic.
    """
    file, stored, name = config.folder / "last.pt", config.folder / "config.yaml", config.output / "last.pt"
    finished = (config.folder / "result.json").exists()
    if not resume or finished or not file.exists() or not stored.exists():
        return
    checkpoint = load_state(file, name, whole=False)
    world, now = checkpoint["world"], ranks.world * config.accumulate
    accumulate = checkpoint.get("accumulate") or stored_accumulate(config)  # an older version didn't write it
    before = world * accumulate
    if before != now:
        other = f"set accumulate={before // ranks.world}, or " if before % ranks.world == 0 else ""
        raise ReskdError(
            f"{name}: a step had {world} processes × accumulate {accumulate} = {before} micro-batches, this run has "
            f"{ranks.world} × {config.accumulate} = {now}: {other}start {world} processes with accumulate={accumulate}"
        )
    if world != ranks.world:
        console.print(
            f"{name} is of {world} processes, this run has {ranks.world}: the clips come in the same order; BatchNorm's "
            "statistics are averaged and random numbers are drawn anew, so the metrics are close, not the same"
        )


def restore(run: TrainingRun, checkpoint: Mapping) -> None:
    """Put a run into the state that `save_checkpoint` saved, by the same number of ranks or by another one.

    Raises ReskdError for other clips.
    """
    config, ranks, student = run.config, run.ranks, run.student
    if checkpoint["order"] != run.order_digest:
        where = f"{config.data.train} or {config.data.cache}" if config.data.cache else str(config.data.train)
        raise ReskdError(f"{config.output}: the clips in {where} are not those that the run began with: put them back, "
                         f"or delete {config.output} to begin anew")  # fmt: skip
    same_ranks = checkpoint["world"] == ranks.world
    of_this_rank = checkpoint["ranks"][ranks.rank] if same_ranks else shared_out(checkpoint["ranks"], ranks)
    student.model.load_state_dict(checkpoint["model"])
    student.model.load_state_dict(of_this_rank["buffers"], strict=False)
    if student.projector:
        student.projector.load_state_dict(checkpoint["adapter"])
    if run.ema:
        run.ema.module.load_state_dict(checkpoint["ema"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    if same_ranks:
        restore_random_state(of_this_rank["random"])
    else:
        seed_all(config.seed, checkpoint["step"], ranks.rank)
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


def _statistics(model: torch.nn.Module) -> set[str]:
    """Names of the buffers that training changes, BatchNorm's. Others, such as a Swin's tables of positions, are constants."""
    norms = (name for name, module in model.named_modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase))
    return {f"{norm}.{name}" for norm in norms for name in ("running_mean", "running_var", "num_batches_tracked")}
