"""What the teacher was paid for, and what it would have been paid for inside the students' training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cache.group import load_manifest
from cache.teacher_time import teacher_time_of


def teacher_cost(runs_of: Mapping[Path, Sequence[Path]]) -> dict[str, float | None]:
    """Of caches, and the finished runs (folders) that were distilled from each.

    {"teacher_clip_views": computed once, "in_loop_clip_views": that the same training would have had the teacher compute,
    "teacher_hours", "in_loop_hours": of its forwards alone, by the time that they took for each cache; None where a cache
    doesn't tell (it was made by an older version)}.
    """
    views, seen, hours, loop_hours, told = 0, 0, 0.0, 0.0, True
    for cache, runs in runs_of.items():
        manifest = load_manifest(cache)
        quarantined = sum(map(len, manifest.quarantine.values()))
        views += (sum(e.clips for e in manifest.identity.shards) - quarantined) * manifest.finalised
        mine = sum(json.loads((run / "result.json").read_text())["clips_seen"] for run in runs)
        seen += mine
        spent = teacher_time_of(cache, manifest.notes)
        if spent is None or not spent.clip_views:
            told = False
            continue
        hours += spent.forward_seconds / 3600
        loop_hours += mine * spent.forward_seconds / spent.clip_views / 3600
    return {
        "teacher_clip_views": views,
        "in_loop_clip_views": seen,
        "teacher_hours": hours if told and runs_of else None,
        "in_loop_hours": loop_hours if told and runs_of else None,
    }
