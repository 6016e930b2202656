"""What the teacher was paid for, and what it would have been paid for inside the students' training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cache.paid import paid_for
from cache.reader import load_manifest


def teacher_ledger(caches: Sequence[Path], runs: Sequence[Path]) -> dict[str, float | None]:
    """Of caches, and of the finished runs (folders) that were distilled from them.

    {"teacher_clip_views": computed once, "in_loop_clip_views": that the same training would have had the teacher compute,
    "teacher_hours", "in_loop_hours": of its forwards alone, by the time that they took for the caches; None where a cache
    doesn't tell (it was made by an older version)}.
    """
    paid, seconds, timed = 0, 0.0, 0
    for cache in caches:
        manifest = load_manifest(cache)
        quarantined = sum(map(len, manifest.quarantine.values()))
        paid += (sum(e.clips for e in manifest.identity.shards) - quarantined) * manifest.finalised
        if (spent := paid_for(cache, manifest.notes)) is not None:
            seconds, timed = seconds + spent.forward_seconds, timed + spent.clip_views
    seen = sum(json.loads((run / "result.json").read_text())["clips_seen"] for run in runs)
    return {
        "teacher_clip_views": paid,
        "in_loop_clip_views": seen,
        "teacher_hours": seconds / 3600 if timed else None,
        "in_loop_hours": seen * seconds / timed / 3600 if timed else None,
    }
