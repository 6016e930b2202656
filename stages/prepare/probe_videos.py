"""What a video file is: its properties, or the reason why it can't be read."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.workers import Task, video_limits
from stages.video.decode import PartError, VideoInfo, probe, probe_part
from stages.video.errors import DecodeError

TOLERANCE = 1.0  # seconds: a part that ends so little after its video isn't reported, because times are rounded


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a video, from `start` to `end` (seconds). `where`: the line that lists it, for messages."""

    start: float
    end: float
    where: str


@dataclass(frozen=True, slots=True)
class Probe:
    """The properties `info` of a video or a part of it, or the `error` why it can't be read."""

    sha256: str
    info: VideoInfo | None
    error: str | None
    start: int = 0  # number of the part's first frame
    kind: str = "unreadable"  # of the error, as quarantine.jsonl names it: "unreadable" or "range"
    remark: str | None = None  # that the part is shorter than listed


def probe_task(
    path: Path, offset: int = 0, size: int | None = None, *, part: Part | None = None, every_frame: bool = False
) -> Task[Probe]:
    """A task that probes a file, or `size` bytes of it from `offset`: the member of a tar. See `probe_bytes`."""
    return partial(_probe_file, path, offset, size, part, every_frame)


def hash_task(path: Path) -> Task[str]:
    """A task that gives the sha256 of a file."""
    return partial(_hash_file, path)


def probe_bytes(data: bytes, part: Part | None = None, every_frame: bool = False) -> Probe:
    """The Probe of an encoded video. `part`: of this part. `every_frame`: all frames are decoded, and damage is found."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        if not data:
            raise DecodeError("empty file (0 bytes)")
        with video_limits(len(data)):
            if part is None:
                return Probe(digest, probe(data, every_frame=every_frame), None)
            info, start, duration = probe_part(data, part.start, part.end, every_frame=every_frame)
    except PartError as error:
        return Probe(digest, None, f"{error} ({part.where})", kind="range")
    except DecodeError as error:
        return Probe(digest, None, str(error))
    except Exception as error:  # a decoder may raise anything for a damaged file; one clip must not end a long run
        return Probe(digest, None, f"{type(error).__name__}: {error}")
    short = part.end > duration + TOLERANCE
    remark = f"the part from {part.start:g} to {part.end:g} s ends with its video, at {duration:.2f} s ({part.where})"
    return Probe(digest, info, None, start, remark=remark if short else None)


def crashed_probe(reason: str) -> Probe:
    """The Probe of a video whose decoder crashed."""
    return Probe("", None, reason)


def _probe_file(path: Path, offset: int, size: int | None, part: Part | None, every_frame: bool) -> Probe:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(-1 if size is None else size)
    except OSError as error:
        if size is not None:  # a shard: its disk fails, not the video
            raise ReskdError(f"{path}: can't be read ({error.strerror}). Restore the shard and run again") from error
        return Probe("", None, f"can't be read: {error.strerror}")
    if size is not None and len(data) != size:
        raise ReskdError(f"{path}: it was cut while it was read. Restore the shard and run again")
    return probe_bytes(data, part, every_frame)


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
