"""How thoroughly `prepare` checks videos: some frames of each (quick), or every frame (full)."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from cache.store import write_atomically
from stages.prepare.probe_videos import probe_bytes
from stages.prepare.source import Source
from stages.prepare.workers import Workers
from stages.shards.index import dump
from stages.shards.tar_scan import scan_tar

Check = Literal["quick", "full"]
MAX_SECONDS = 600  # a full check is the default if it is estimated to take no longer
SMALL = 32_000_000  # bytes of video of which every frame is decoded in any case
SAMPLE = 8  # videos
_FILE = "check.json"


def choose_check(wanted: Check | None, found: Source, source: Path, work: Path, workers: Workers) -> tuple[Check, str]:
    """The check of a run, and why. Without a wish: full if it is estimated to take at most MAX_SECONDS.

    The choice is kept in the folder `work`, so that a killed run goes on with it.
    """
    file = work / _FILE
    if wanted is None and file.exists():
        return json.loads(file.read_bytes())["check"], "as it began"
    if wanted is not None:
        check, reason = wanted, f"--check {wanted}"
    else:
        seconds = _estimated_seconds(*_videos(found, source), workers)
        check = "full" if seconds <= MAX_SECONDS else "quick"
        reason = (
            f"to decode every frame would take about {seconds / 60:.0f} minutes" if seconds >= 60 else "it is quick"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(file, dump({"check": check}))
    return check, reason


def _videos(found: Source, source: Path) -> tuple[list[tuple[Path, int, int]], int]:
    """Places of videos (file, offset, size) to take a sample from, and the bytes of all videos."""
    if found.tars:
        first = source / found.tars[0]
        videos = [(first, sample.video.offset, sample.video.size) for sample in scan_tar(first).samples]
        return videos, sum((source / tar).stat().st_size for tar in found.tars)
    videos = [(clip.path, 0, clip.size) for clip in found.clip_list.clips if clip.frames is None and clip.size]
    return videos, sum(size for *_, size in videos)


def _estimated_seconds(videos: Sequence[tuple[Path, int, int]], total: int, workers: Workers) -> float:
    """How long it takes to decode every frame of `total` bytes of video: by the rate of some of them, on all workers."""
    if total <= SMALL or not videos:
        return 0.0
    sample = videos[:: max(1, len(videos) // SAMPLE)][:SAMPLE]
    seconds = sum(workers.map([partial(_seconds_of, *video) for video in sample], lambda _: 0.0))
    return seconds * total / sum(size for *_, size in sample) / max(1, workers.count)


def _seconds_of(path: Path, offset: int, size: int) -> float:
    started = time.process_time()
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            probe_bytes(file.read(size), every_frame=True)
    except OSError:
        pass
    return time.process_time() - started
