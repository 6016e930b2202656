"""One shard of a cache: stage one's unit of work, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stages.stream.all_views import ShardWork, ViewBatch
from stages.teacher.forward import AsyncForward
from stages.teacher.target_writer import TargetWriter, ViewRows


def cache_shard(
    work: ShardWork,
    keys: list[str],
    forward: AsyncForward,
    batches: Iterable[ViewBatch],
    writer: TargetWriter,
    submit: Callable[..., None],
) -> int:
    """Compute and commit the missing views of one shard; returns the clip·views computed.

    Every engine's unit of work. It can be repeated: one process owns the shard's group meanwhile. A forward holds rows
    of one shard and view, in tar order, in the manifest's batch size, so the content does not depend on the process (bit
    by bit on one CPU with one number of threads). `forward` comes from `async_forward`, `writer` and `submit` from
    `target_writer`: encoding and writing overlap with forwards, those of the next shard too.
    """
    computed = 0
    submit(writer.open, work, keys)
    for batch in batches:
        n = len(batch.frames)
        rows = slice(batch.start, batch.start + n)
        for kind, reasons in (("quarantined", batch.quarantine), ("fallback", batch.fallbacks)):
            submit(writer.note, kind, reasons)
        for j, view in enumerate(work.views):
            part = ViewRows(view, rows, batch.frames[:, j], batch.box[:, j], batch.flip[:, j], batch.quarantine)
            submit(writer.write, part, forward(batch.clips[j], work.targets))
        computed += (n - len(batch.quarantine)) * len(work.views)
        if rows.stop == len(keys):  # don't ask for another batch: it may raise the next shard's error
            break
    submit(writer.commit)
    return computed
