"""One shard's targets on their way into its group: what follows the teacher's forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.writer import ShardWriter
from stages.runtime.background_writer import background_writer
from stages.runtime.log import console
from stages.stream.all_views import Work
from stages.teacher.forward import TeacherOutput
from stages.teacher.sample_maps import FLOAT16_MAX

AHEAD = 2  # answers of the teacher that are written or wait for it, beside the forward at work
NOT_FINITE = "the teacher's answer is not finite"


@dataclass(frozen=True)
class Rows:
    """Rows of a shard in one view, without their pixels."""

    view: int
    rows: slice
    frames: np.ndarray  # int32 [n,T]
    box: np.ndarray  # float32 [n,4]
    flip: np.ndarray  # bool [n]
    quarantine: dict[str, str]  # key -> reason, of the rows that can't be decoded


class Store:
    """Writes what shards lack, one shard after the other; all of it in the thread of `storing`."""

    def __init__(self, path: Path, manifest: Manifest, spend: Callable[[float, int], None]):
        self.path, self.manifest, self.spend = path, manifest, spend
        self.writer: ShardWriter | None = None  # of the shard at work, until it is committed

    def open(self, work: Work, keys: list[str]) -> None:
        """Begin a shard; `keys` are all of its own."""
        self.work, self.keys = work, keys
        self.reasons: dict[str, dict[str, str]] = {"quarantined": {}, "fallback": {}}
        self.writer = ShardWriter(self.path, self.manifest, work.shard, keys, work.views)
        assert self.writer.targets == work.targets

    def write(self, part: Rows, answer: Callable[[], TeacherOutput]) -> None:
        """Wait for the teacher's answer and hand it in; a row whose answer isn't finite is quarantined."""
        n, keys = len(part.frames), self.keys[part.rows]
        answered = answer()
        targets = {name: value[:n] for name, value in answered.targets.items()}
        valid = np.array([key not in part.quarantine for key in keys])
        self.spend(answered.seconds, int(valid.sum()))
        lost = _not_finite(targets, keys, valid, part.view)
        finite = np.array([key not in lost for key in keys])
        seen = {"frames": part.frames, "box": part.box, "flip": part.flip, "valid": valid}
        self.writer.write(part.view, part.rows, finite=finite, **seen, **targets)
        self.note("quarantined", lost)

    def note(self, what: str, reasons: dict[str, str]) -> None:
        """Add "quarantined" or "fallback" clips, key -> reason. The last reason is stored, the first one is said."""
        for key in [key for key in reasons if key not in self.reasons[what]]:
            console.print(f"[yellow]{what}[/] {self.work.shard}/{key}: {reasons[key]}", highlight=False)
        self.reasons[what] |= reasons

    def commit(self) -> None:
        """End the shard. Raises ReskdError where no answer at all was finite."""
        _refuse_if_all(self.path, self.work.shard, self.keys, self.reasons["quarantined"])
        self.writer.commit(self.reasons["quarantined"], self.reasons["fallback"])
        self.writer = None


@contextmanager
def storing(
    path: Path, manifest: Manifest, spend: Callable[[float, int], None]
) -> Iterator[tuple[Store, Callable[..., None]]]:
    """A store and `submit` of `behind`, whose thread it works in: `submit(store.write, part, answer)`.

    When the context is left, all is committed, or an exception is raised and the shard at work is given up.
    """
    store = Store(path, manifest, spend)
    try:
        with background_writer(AHEAD) as submit:
            yield store, submit
    except BaseException:
        if store.writer is not None:
            store.writer.abort()
        raise


def _not_finite(targets: dict[str, np.ndarray], keys: list[str], valid: np.ndarray, view: int) -> dict[str, str]:
    """key -> reason of the rows whose targets hold NaN or infinity, or what float16 can't hold."""
    bad = np.zeros(len(keys), bool)
    for values in targets.values():
        flat = values.reshape(len(values), -1)
        bad |= ~(np.abs(flat) <= FLOAT16_MAX).all(1)
    return {keys[i]: f"{NOT_FINITE} ({' or '.join(targets)}, view {view})" for i in np.flatnonzero(bad & valid)}


def _refuse_if_all(path: Path, shard: str, keys: list[str], quarantine: dict[str, str]) -> None:
    """One clip may upset a teacher; a teacher that every clip upsets is the fault."""
    seen = [key for key in keys if quarantine.get(key, NOT_FINITE).startswith(NOT_FINITE)]  # all that could be decoded
    if seen and all(key in quarantine for key in seen):
        raise ReskdError(f"{path}, shard {shard}: {NOT_FINITE} for any of its {len(seen)} clips: look into its checkpoint, "
                         "or set teacher.dtype=float32")  # fmt: skip
