"""Teacher time: what a teacher computed for its cache, and what it would have computed inside the students' training."""

from __future__ import annotations

from collections.abc import Mapping

from cache.group import load_manifest
from cache.teacher_time import teacher_time_of
from stages.remote.url_path import Location


def teacher_cost(clips_seen_by_cache: Mapping[Location, int]) -> dict[str, float | None]:
    """The teacher's work for caches. `clips_seen_by_cache`: in the training of all finished students of each cache.

    {"teacher_clip_views": computed once, for the caches; "in_loop_clip_views": those of the same training with the teacher
    in the loop; "teacher_hours", "in_loop_hours": of the teacher's forwards for them, at the pace measured for each cache;
    None if an older version made a cache, because it has no teacher time}.
    """
    views, hours, in_loop_hours, all_timed = 0, 0.0, 0.0, True
    for cache, clips_seen in clips_seen_by_cache.items():
        manifest = load_manifest(cache)
        quarantined = sum(map(len, manifest.quarantine.values()))
        views += (sum(e.clips for e in manifest.identity.shards) - quarantined) * manifest.finalised
        time = teacher_time_of(cache, manifest.notes)
        if time is None or not time.clip_views:
            all_timed = False
            continue
        hours += time.forward_seconds / 3600
        in_loop_hours += clips_seen * time.forward_seconds / time.clip_views / 3600
    return {
        "teacher_clip_views": views,
        "in_loop_clip_views": sum(clips_seen_by_cache.values()),
        "teacher_hours": hours if all_timed and clips_seen_by_cache else None,
        "in_loop_hours": in_loop_hours if all_timed and clips_seen_by_cache else None,
    }
