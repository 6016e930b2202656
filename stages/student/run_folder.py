"""A run's folder and its checkpoints: atomic, and complete enough for an exact resume in mid-epoch."""

from __future__ import annotations

import shutil
from pathlib import Path

from cache.differences import differences
from cache.errors import ReskdError
from stages.config.file import flat, load_config, save_config
from stages.runtime.log import console
from stages.student.config import TrainConfig

# Keys whose change doesn't make another run: where it is written, and how its batches are fetched.
FREE_KEYS = ("output", "log_every", "checkpoint_every", "loader.workers", "loader.prefetch")


def check_run(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Whether the run's folder is free for it, or holds it; nothing is written.

    Raises ReskdError where the folder holds a run and neither `resume` nor `overwrite` is given, where it holds
    something else, or where `resume` is given and the stored config differs (each difference is named).
    """
    folder, stored = config.output, config.output / "config.yaml"
    if resume and overwrite:
        raise ReskdError("--resume goes on with a run, --overwrite begins it anew: give one of them")
    held = stored.exists()
    if not held and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ReskdError(f"{folder} is not an empty folder and holds no run: give another output")
    if held and not resume and not overwrite:
        raise ReskdError(f"{folder} holds a run already: continue it with --resume, replace it with --overwrite, "
                         f"or give another output")  # fmt: skip
    if held and resume:
        _compare(stored, config)


def open_run(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder ready, after `check_run`, and save the config in it."""
    folder, stored = config.output, config.output / "config.yaml"
    if stored.exists() and overwrite:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        for entry in ("metrics.jsonl", "last.pt", "last.safetensors", "best.safetensors", "result.json", "config.yaml"):
            (folder / entry).unlink(missing_ok=True)  # the config last: it says that a run is here
    elif resume and not stored.exists():
        console.print(f"{folder} holds no run yet: starting at step 0")
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, stored)


def stored_views(config: TrainConfig) -> int | None:
    """How many stored views the run in `config.output` replays, if there is one: a cache may have grown since."""
    stored = config.output / "config.yaml"
    return _load(stored).data.views if stored.exists() else None


def _load(stored: Path) -> TrainConfig:
    """The run's config: an older version's values by today's names, keys that it didn't have at their defaults."""
    try:
        return load_config(TrainConfig, stored)
    except ReskdError as error:
        raise ReskdError(f"{error}\n{stored} is damaged, or another version of reskd wrote it: use that version, or delete "
                         f"{stored.parent} to begin anew") from error  # fmt: skip


def _compare(stored: Path, config: TrainConfig) -> None:
    run, now = (flat(values.model_dump(mode="json")) for values in (_load(stored), config))
    run, now = ({key: value for key, value in side.items() if key not in FREE_KEYS} for side in (run, now))
    if lines := differences(run, now, ("the run has", "this config")):
        raise ReskdError(f"{stored.parent} holds a run of another config:\n  " + "\n  ".join(lines)
                         + f"\ngo on with the stored config, delete {stored.parent} to begin anew, or give another "
                         f"output")  # fmt: skip
