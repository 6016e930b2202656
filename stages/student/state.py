"""The file of a run's state, and the state of random generators."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.remote.url_path import Location
from stages.runtime.distributed import Ranks


def save_state(path: Path, state: dict) -> None:
    """Write a dict of tensors and plain values atomically: a kill at any time leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, name: Location | None = None, *, whole: bool = True) -> dict:
    """Read what `save_state` wrote, onto the CPU. Not `whole`: its tensors stay in the file until they are read.

    `name`: what the user calls the file, if `path` is a copy.
    Raises ReskdError for a damaged file.
    """
    name = name or path
    try:
        if not whole:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with zipfile.ZipFile(path) as archive:  # torch passes over the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it has another checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for a damaged file
        raise ReskdError(f"checkpoint {name} can't be read ({error}): delete {name.parent} to begin anew") from error


def torch_state() -> dict:
    """State of torch's random generators on the CPU and on this process's GPU."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_torch(state: dict) -> None:
    """Set torch's random generators to what `torch_state` returned."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def random_state() -> dict:
    """State of all random generators that training may use, in types that torch.load reads with `weights_only=True`."""
    return {**torch_state(), "python": random.getstate(), "numpy": _numpy_state()}


def restore_random_state(state: dict) -> None:
    """Set all random generators to what `random_state` returned."""
    restore_torch(state)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def seed_all(*numbers: int) -> None:
    """Seed all random generators by these numbers, for a state that no checkpoint has."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "little"))


def shared_out(of_old_ranks: Sequence[Mapping], ranks: Ranks) -> dict:
    """What a checkpoint has of each rank, for a rank of another number of ranks. The means over all ranks stay.

    `of_old_ranks`: {"buffers", "failed", "sums", "summed"} of each rank, as `checkpoint.save_checkpoint` writes them.
    """
    old = len(of_old_ranks)
    buffers = {
        name: sum(of["buffers"][name] for of in of_old_ranks) / old if value.is_floating_point() else value
        for name, value in of_old_ranks[0]["buffers"].items()
    }
    sums = {name: sum(of["sums"][name] for of in of_old_ranks) / ranks.world for name in of_old_ranks[0]["sums"]}
    failed = sum(of["failed"] for of in of_old_ranks)
    return {
        "buffers": buffers,
        "failed": failed if ranks.first else 0,
        "sums": sums,
        "summed": sum(of["summed"] for of in of_old_ranks) / ranks.world,
    }


def _numpy_state() -> tuple:
    name, keys, *rest = np.random.get_state()
    return (name, torch.from_numpy(keys.astype(np.int64)), *rest)
