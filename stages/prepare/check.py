"""How thoroughly `prepare` checks videos: some frames of each (quick), or every frame (full)."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from cache.store import write_atomically
from stages.prepare.output import WORK, Output
from stages.prepare.probe_videos import probe_bytes
from stages.prepare.source import Source
from stages.prepare.tars_at_url import copy_of, local_tar
from stages.prepare.workers import Workers
from stages.remote.store import Changed
from stages.remote.url_path import Location
from stages.shards.index import dump
from stages.shards.tar_scan import scan_tar

Check = Literal["quick", "full"]
MAX_SECONDS = 600  # a full check is the default if it is estimated to take no longer
SMALL = 32_000_000  # bytes of video of which every frame is decoded in any case
SAMPLE = 8  # videos
_FILE = "check.json"


def choose_check(
    wanted: Check | None, found: Source, source: Location, output: Output, workers: Workers
) -> tuple[Check, str]:
    """The check of a run, and why. Without a wish: full if it is estimated to take at most MAX_SECONDS.

    The choice is kept in the output, so that a killed run goes on with it, and a second machine at the same URL takes it.
    Raises Changed if that has begun meanwhile with another check than the wanted one.
    """
    file = output.folder / WORK / _FILE
    if wanted is None and file.exists():
        return json.loads(file.read_bytes())["check"], "as it began"
    if wanted is not None:
        check, reason = wanted, f"--check {wanted}"
    else:
        seconds = _estimated_seconds(found, source, output.folder, workers)
        check = "full" if seconds <= MAX_SECONDS else "quick"
        reason = (
            f"to decode every frame would take about {seconds / 60:.0f} minutes" if seconds >= 60 else "it is quick"
        )
    write_atomically(file, dump({"check": check}))
    try:
        output.put(file)
    except Changed:
        if wanted is not None:
            raise
        output.mirror.fetch_again(f"{WORK}/{_FILE}")
        return json.loads(file.read_bytes())["check"], "as another machine began"
    return check, reason


def _estimated_seconds(found: Source, source: Location, folder: Path, workers: Workers) -> float:
    """How long it takes to decode every frame of all videos: by the rate of some of them, on all workers.

    `folder`: the working folder, for a copy of a tar at a URL.
    """
    videos = [(clip.path, 0, clip.size) for clip in found.clip_list.clips if clip.frames is None and clip.size]
    total = sum(found.tars.values()) or sum(size for *_, size in videos)
    if total <= SMALL:
        return 0.0
    if not found.tars:
        return total * _seconds_a_byte(videos, workers)
    name, size = next(iter(found.tars.items()))
    with local_tar(source, name, size, folder, keep=copy_of(folder, name).exists()) as tar:
        videos = [(tar, sample.video.offset, sample.video.size) for sample in scan_tar(tar).samples]
        return total * _seconds_a_byte(videos, workers)


def _seconds_a_byte(videos: Sequence[tuple[Path, int, int]], workers: Workers) -> float:
    """By some of the videos, which are given by file, offset and size. Of none, and of empty ones: 0."""
    sample = videos[:: max(1, len(videos) // SAMPLE)][:SAMPLE]
    seconds = sum(workers.map([partial(_seconds_of, *video) for video in sample], lambda _: 0.0))
    return seconds / max(1, sum(size for *_, size in sample)) / max(1, workers.count)


def _seconds_of(path: Path, offset: int, size: int) -> float:
    started = time.process_time()
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            probe_bytes(file.read(size), every_frame=True)
    except OSError:
        pass
    return time.process_time() - started
