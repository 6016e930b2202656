"""The folder of a run: the check whether a run may use it, and its config."""

from __future__ import annotations

import shutil
from pathlib import Path

from cache.errors import ReskdError
from cache.store import partial_file
from stages.config.file import changed_keys, load_config, save_config
from stages.runtime.terminal import console
from stages.student.config import TrainConfig

# Keys that may change between a run and its resume: where and how often it is written, and how batches are fetched.
# `accumulate` may change with the number of processes: `checkpoint.check_group` compares the product of the two.
FREE_KEYS = ("output", "accumulate", "log_every", "checkpoint_every", "loader.workers", "loader.prefetch",
             "loader.limits.seconds", "loader.limits.bytes", "loader.local.path", "loader.local.budget")  # fmt: skip


def check_run(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Check that the run's folder is free, or that it holds the run to resume. Nothing is written.

    Raises ReskdError if the folder holds a run and neither `resume` nor `overwrite` is given, if it holds something
    else, or if `resume` is given and the stored config differs (the message names each difference).
    """
    folder, stored = config.output, config.output / "config.yaml"  # for a URL: what is there
    if resume and overwrite:
        raise ReskdError("--resume goes on with a run, --overwrite begins it anew: give one of them")
    holds_run, begun = stored.is_file(), {partial_file(stored).name}  # what a run that was killed at its start leaves
    if not holds_run and folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - begun):
        raise ReskdError(f"{folder} is not an empty folder and holds no run: give another output")
    if holds_run and not resume and not overwrite:
        raise ReskdError(f"{folder} holds a run already: go on with it by --resume, replace it by --overwrite, "
                         f"or give another output")  # fmt: skip
    if holds_run and resume:
        _check_same_config(config)


def open_run(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder and save the config in it. Call `check_run` first.

    With `overwrite`, the files of the earlier run are removed, and no other files.
    """
    folder, stored = config.output, config.output / "config.yaml"
    if overwrite and stored.is_file():
        if isinstance(folder, Path):
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        else:
            for name in (folder / "tensorboard").files():
                (folder / "tensorboard" / name).unlink()
        for entry in ("metrics.jsonl", "last.pt", "last.safetensors", "best.safetensors", "result.json", "config.yaml"):
            (folder / entry).unlink(missing_ok=True)  # config.yaml marks a run: it goes last
    elif resume and not stored.is_file():
        console.print(f"{folder} holds no run yet: starting at step 0")
    if not resume and config.folder != folder:
        shutil.rmtree(config.folder, ignore_errors=True)  # of an earlier run, which is no more at the URL
    config.folder.mkdir(parents=True, exist_ok=True)
    save_config(config, config.folder / "config.yaml")


def check_still_there(config: TrainConfig) -> None:
    """Raises ReskdError if the run's folder has been moved or deleted since `open_run`. It would be made again, in part."""
    # A system deletes from its temporary folder what nobody has read for days. The log is written all the time.
    folder, file = config.folder, "config.yaml" if isinstance(config.output, Path) else "metrics.jsonl"
    if not (folder / file).exists():
        raise ReskdError(f"{folder}: the run's folder has been moved, deleted or unmounted while the run was at work. Put it "
                         "back and go on with --resume, or begin anew")  # fmt: skip


def stored_config(config: TrainConfig) -> TrainConfig | None:
    """The config of the run in `config.output`; None without a run."""
    return _load_stored(config) if (config.folder / "config.yaml").exists() else None


def stored_accumulate(config: TrainConfig) -> int:
    """The micro-batches of a step of one rank, of the run in `config.output`."""
    return _load_stored(config).accumulate


def _load_stored(config: TrainConfig) -> TrainConfig:
    """The config of the run in `config.output`. Old names are translated. Keys that an older version did not have get their
    defaults."""
    try:
        return load_config(TrainConfig, config.folder / "config.yaml")
    except ReskdError as error:
        raise ReskdError(f"{error}\n{config.output / 'config.yaml'} is damaged, or another version of reskd wrote it: use that "
                         f"version, or delete {config.output} to begin anew") from error  # fmt: skip


def _check_same_config(config: TrainConfig) -> None:
    """Raise ReskdError if the config differs from the stored one in a key outside FREE_KEYS."""
    if lines := changed_keys(_load_stored(config), config, FREE_KEYS, ("the run has", "this config")):
        raise ReskdError(f"{config.output} holds a run of another config:\n  " + "\n  ".join(lines)
                         + f"\ngo on with the stored config, delete {config.output} to begin anew, or give another "
                         f"output")  # fmt: skip
