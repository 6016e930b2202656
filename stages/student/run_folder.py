"""A run's folder and its checkpoints: atomic, and complete enough for an exact resume in mid-epoch."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.config.file import flat, save_config
from stages.config.schema import TrainConfig
from stages.runtime.log import console

# Keys whose change doesn't make another run: where it is written, and how its batches are fetched.
FREE_KEYS = ("output", "log_every", "checkpoint_every", "loader.workers", "loader.prefetch")


# Seconds. DataLoader's workers inherit the lock, and notice within five that the process they work for was killed.
LOCK_PATIENCE = 7


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Hold the folder `path` for this process; the lock (a file beside it) ends with the process, however it ends.

    Raises ReskdError where another process holds it, or its parent can't be written.
    """
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_PATIENCE)
    except Timeout:
        raise ReskdError(f"{path} is in use by another process: wait for it, or give another output") from None
    except OSError as error:
        raise ReskdError(f"{path} can't be written: {error.strerror or error}; give another output") from error
    try:
        yield
    finally:
        lock.release()


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
    return _load(stored)["data"]["views"] if stored.exists() else None


def _load(stored: Path) -> dict:
    try:
        values = yaml.safe_load(stored.read_text())
        values["data"]["views"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ReskdError(f"{stored} is damaged ({error!r}): delete {stored.parent} to begin anew") from error
    return values


def _compare(stored: Path, config: TrainConfig) -> None:
    there, here = flat(_load(stored)), flat(config.model_dump(mode="json"))
    differing = [key for key in sorted(there.keys() | here.keys())
                 if key not in FREE_KEYS and there.get(key) != here.get(key)]  # fmt: skip
    if differing:
        lines = [f"  {key}: {there.get(key)!r} there, {here.get(key)!r} now" for key in differing]
        raise ReskdError(f"{stored.parent} holds a run of another config:\n" + "\n".join(lines)
                         + f"\ngo on with the stored config, delete {stored.parent} to begin anew, or give another "
                         f"output")  # fmt: skip


def save_state(path: Path, state: dict) -> None:
    """Write a dict of tensors and plain values atomically: the file before it survives a kill at any instant."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ReskdError(f"checkpoint {path} can't be read ({error}): delete {path.parent} to begin anew") from error


def torch_state() -> dict:
    """State of torch's generators on this process's devices."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_torch(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def random_state() -> dict:
    """State of every generator that training may draw from, in types that `weights_only=True` loads."""
    return {**torch_state(), "python": random.getstate(), "numpy": _numpy_state()}


def restore_random_state(state: dict) -> None:
    restore_torch(state)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def _numpy_state() -> tuple:
    name, keys, *rest = np.random.get_state()
    return (name, torch.from_numpy(keys.astype(np.int64)), *rest)
