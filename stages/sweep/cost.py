"""Teacher time: what a teacher computed for its cache, and what it would have computed inside the students' training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cache.group import load_manifest
from cache.teacher_time import teacher_time_of
from stages.config.json_result import read_result
from stages.remote.url_path import Location


def teacher_cost(runs_by_cache: Mapping[Location, Sequence[Path]]) -> dict[str, float | None]:
    """The teacher's work for caches. `runs_by_cache`: the finished run folders of the students of each cache.

    {"teacher_clip_views": computed once, for the caches; "in_loop_clip_views": those of the same training with the teacher
    in the loop; "teacher_hours", "in_loop_hours": of the teacher's forwards for them, at the pace measured for each cache;
    None if an older version made a cache, because it has no teacher time}.
    """
    views, clips_seen, hours, in_loop_hours, all_timed = 0, 0, 0.0, 0.0, True
    for cache, runs in runs_by_cache.items():
        manifest = load_manifest(cache)
        quarantined = sum(map(len, manifest.quarantine.values()))
        views += (sum(e.clips for e in manifest.identity.shards) - quarantined) * manifest.finalised
        clips_of_cache = sum(read_result(run / "result.json")["clips_seen"] for run in runs)
        clips_seen += clips_of_cache
        time = teacher_time_of(cache, manifest.notes)
        if time is None or not time.clip_views:
            all_timed = False
            continue
        hours += time.forward_seconds / 3600
        in_loop_hours += clips_of_cache * time.forward_seconds / time.clip_views / 3600
    return {
        "teacher_clip_views": views,
        "in_loop_clip_views": clips_seen,
        "teacher_hours": hours if all_timed and runs_by_cache else None,
        "in_loop_hours": in_loop_hours if all_timed and runs_by_cache else None,
    }
