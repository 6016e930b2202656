"""Writes the teacher's targets into shards' groups, in threads beside the forwards.

One thread takes the answers in order and sorts their rows into blocks. A pool compresses full blocks and writes their files.
One thread commits shards in order, while the next shard is being filled already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.buffers import Run
from cache.errors import ReskdError
from cache.manifest import Manifest
from cache.writer import ShardWriter
from stages.remote.lease import LeaseLost
from stages.remote.published_cache import PublishedCache
from stages.runtime.background_writer import background_writer
from stages.runtime.bounded_pool import bounded_pool
from stages.runtime.distributed import cores
from stages.runtime.memory import memory_of_rank
from stages.runtime.terminal import console
from stages.stream.all_views import ShardWork
from stages.teacher.forward import TeacherOutput

QUEUED = 2  # jobs that are running or waiting in the writer's thread
THREADS = 8  # at most, that compress: one that is needed is started
HELD = 2**30  # bytes of blocks that wait to be compressed, at most; forwards wait for them
NOT_FINITE = "the teacher's answer is not finite"  # stored as a clip's reason


@dataclass(frozen=True)
class ViewRows:
    """Rows of a shard in one view, without their pixels."""

    view: int
    rows: slice
    frames: np.ndarray  # int32 [n,T]
    box: np.ndarray  # float32 [n,4]
    flip: np.ndarray  # bool [n]
    quarantine: dict[str, str]  # key -> reason, of the rows that can't be decoded


class TargetWriter:
    """Writes the missing targets of shards, one shard after the other. All methods run in the thread of `target_writer`.

    `run`: starts jobs, as `bounded_pool` does. `submit_commit`: as that of `background_writer(1)`.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        record: Callable[[float, int], None],
        run: Run,
        submit_commit: Callable[..., None],
        published: PublishedCache | None = None,
    ):
        self.path, self.manifest, self.record, self.run, self.submit_commit = path, manifest, record, run, submit_commit
        self.published = published  # where the cache lies in a store
        self.uncommitted: list[ShardWriter] = []  # of the open shard, and of one that is being committed
        self.work: ShardWork | None = None
        self.shard_writer: ShardWriter | None = None  # None for a shard that another writer has taken over
        self.on_commit: Callable[[str], None] = lambda shard: None  # is called in the thread that commits

    def open(self, work: ShardWork, keys: list[str]) -> None:
        """Begin a shard; `keys` are the keys of all its rows."""
        if self.work and self.work.shard == work.shard:  # its group is read again: wait for the commit
            self.submit_commit(lambda: None)
        self.work, self.keys = work, keys
        self.reasons: dict[str, dict[str, str]] = {"quarantined": {}, "fallback": {}}
        self.shard_writer = None
        try:
            if self.published is not None:
                self.published.prepare(work.shard)
        except LeaseLost as error:  # before its second piece of work: what comes of it is passed over
            console.print(f"[yellow]left out[/] {error}", highlight=False)
            return
        self.shard_writer = ShardWriter(self.path, self.manifest, work.shard, keys, work.views, self.run)
        self.uncommitted.append(self.shard_writer)
        assert self.shard_writer.targets == work.targets

    def write(self, part: ViewRows, wait: Callable[[], TeacherOutput]) -> None:
        """Wait for the teacher's output and write it; a row whose output isn't finite is quarantined."""
        n, keys = len(part.frames), self.keys[part.rows]
        output = wait()
        if self.shard_writer is None:
            return
        stored = {name: values[:n] for name, values in output.stored.items()}
        valid, finite = np.array([key not in part.quarantine for key in keys]), output.finite[:n]
        self.record(output.seconds, int(valid.sum()))
        drawn = {"frames": part.frames, "box": part.box, "flip": part.flip, "valid": valid}
        self.shard_writer.write(part.view, part.rows, finite=finite, stored=stored, **drawn)
        reason = f"{NOT_FINITE} ({' or '.join(self.work.targets)}, view {part.view})"
        self.note("quarantined", {keys[i]: reason for i in np.flatnonzero(valid & ~finite)})

    def note(self, kind: str, reasons: dict[str, str]) -> None:
        """Add "quarantined" or "fallback" clips, key -> reason. A clip's last reason is stored, its first one is printed."""
        for key in [key for key in reasons if key not in self.reasons[kind]]:
            console.print(f"[yellow]{kind}[/] {self.work.shard}/{key}: {reasons[key]}", highlight=False)
        self.reasons[kind] |= reasons

    def commit(self) -> None:
        """End the shard; it is committed when its blocks are written, and all shards before it are committed.

        Raises ReskdError where the teacher's output is finite for none of its clips.
        """
        if self.shard_writer is None:
            self.submit_commit(self.on_commit, self.work.shard)
            return
        _refuse_if_all(self.path, self.work.shard, self.keys, self.reasons["quarantined"])
        self.submit_commit(self._commit, self.shard_writer, self.reasons)

    def _commit(self, shard_writer: ShardWriter, reasons: dict[str, dict[str, str]]) -> None:
        shard_writer.commit(reasons["quarantined"], reasons["fallback"])
        self.uncommitted.remove(shard_writer)
        if self.published is not None:
            try:
                self.published.publish(shard_writer.shard)
            except LeaseLost as error:
                console.print(f"[yellow]left out[/] {error}", highlight=False)
                self.published.give_up(shard_writer.shard)
        self.on_commit(shard_writer.shard)


@contextmanager
def target_writer(
    path: Path, manifest: Manifest, record: Callable[[float, int], None], published: PublishedCache | None = None
) -> Iterator[tuple[TargetWriter, Callable[..., None]]]:
    """Yields a TargetWriter, and `submit` of `background_writer`: `submit(writer.write, part, wait)` writes in its thread.

    `record(seconds, clip_views)` is called for each written part. `published`: the cache in a store of which `path` is the
    local folder; its shards must be claimed. At the end of the context all shards are committed. An
    exception is raised again, and what isn't committed is given up.
    """
    limit, writer = min(HELD, memory_of_rank() // 16), None
    try:
        with (
            bounded_pool(min(THREADS, cores()), limit) as run,
            background_writer(1) as submit_commit,
            background_writer(QUEUED) as submit,
        ):
            writer = TargetWriter(path, manifest, record, run, submit_commit, published)
            yield writer, submit
    except BaseException:
        for shard_writer in writer.uncommitted if writer else ():
            shard_writer.abort()
        raise


def _refuse_if_all(path: Path, shard: str, keys: list[str], quarantine: dict[str, str]) -> None:
    """One clip may upset a teacher. Where every clip does, the teacher is at fault."""
    decoded = [key for key in keys if quarantine.get(key, NOT_FINITE).startswith(NOT_FINITE)]
    if decoded and all(key in quarantine for key in decoded):
        raise ReskdError(f"{path}, shard {shard}: {NOT_FINITE} for any of its {len(decoded)} clips: look into its "
                         "checkpoint, or set teacher.dtype=float32")  # fmt: skip
