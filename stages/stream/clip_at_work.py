"""The clip that a decoding process works on. The parent can read its name, and the kernel limits its time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from stages.runtime.limits import RETRY_FACTOR, limited
from stages.stream.config import ClipLimits
from stages.video.errors import DecodeError

NAME_BYTES = 1000  # a longer name is cut


@dataclass(frozen=True)
class WorkNote:
    """What a worker tells its parent, in memory that both share."""

    name: Any  # RawArray: of the clip that it decodes; empty: none
    moved: Any  # RawValue: when it last began or ended something, in ns of the monotonic clock

    @staticmethod
    def new(context: BaseContext) -> WorkNote:
        return WorkNote(context.RawArray("c", NAME_BYTES + 1), context.RawValue("q", time.monotonic_ns()))

    def write(self, name: bytes) -> None:
        self.name.value, self.moved.value = name, time.monotonic_ns()

    def clip(self) -> str:
        """The name of the clip at work, or an empty string."""
        return os.fsdecode(self.name.value)


@dataclass
class _Worker:
    """This process, if it is a worker."""

    note: WorkNote
    limits: ClipLimits
    # Clips that overran a limit or ended a process. With a reason: they failed twice, and are not tried again.
    suspects: Mapping[str, str | None] = field(default_factory=dict)


_worker: _Worker | None = None


def become_worker(note: WorkNote, limits: ClipLimits) -> None:
    """Makes `clip_at_work` keep the limits in this process, and write the clips' names into `note`."""
    global _worker
    _worker = _Worker(note, limits)


def set_suspects(suspects: Mapping[str, str | None]) -> None:
    """The clips that this worker gives more time and memory, or, if they have a reason, doesn't decode."""
    _worker.suspects = suspects


def still_waiting() -> None:
    """Tells the parent that this worker waits for a clip to come, which has no limits of its own."""
    if _worker is not None:
        _worker.note.write(b"")


@contextmanager
def clip_at_work(name: str) -> Iterator[None]:
    """The decoding of the clip `name`, "shard/key". Raises DecodeError for a clip that was given up.

    In a process that is no worker, there are no limits.
    """
    if _worker is None:
        yield
        return
    written = os.fsencode(name)[:NAME_BYTES]
    suspects, factor = _worker.suspects, 1
    if suspects and (clip := os.fsdecode(written)) in suspects:
        if reason := suspects[clip]:
            raise DecodeError(reason)
        factor = RETRY_FACTOR
    _worker.note.write(written)
    try:
        with limited(_worker.limits.seconds * factor, _worker.limits.bytes * factor):
            yield
    finally:
        _worker.note.write(b"")
