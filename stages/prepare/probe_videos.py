"""What a video file is: its properties, or the reason why it can't be read."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.prepare.workers import Task
from stages.video.decode import DecodeError, VideoInfo, probe


@dataclass(frozen=True, slots=True)
class Probe:
    """The properties `info` of a video, or the `error` why it can't be read."""

    sha256: str
    info: VideoInfo | None
    error: str | None


def probe_task(path: Path, offset: int = 0, size: int | None = None) -> Task[Probe]:
    """A task that probes a file, or `size` bytes of it from `offset`: the member of a tar."""
    return partial(_probe_file, path, offset, size)


def hash_task(path: Path) -> Task[str]:
    """A task that gives the sha256 of a file."""
    return partial(_hash_file, path)


def probe_bytes(data: bytes) -> Probe:
    """The Probe of an encoded video."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        if not data:
            raise DecodeError("empty file (0 bytes)")
        return Probe(digest, probe(data), None)
    except DecodeError as error:
        return Probe(digest, None, str(error))
    except Exception as error:  # a decoder may raise anything for a damaged file; one clip must not end a long run
        return Probe(digest, None, f"{type(error).__name__}: {error}")


def crashed_probe(reason: str) -> Probe:
    """The Probe of a video whose decoder crashed."""
    return Probe("", None, reason)


def _probe_file(path: Path, offset: int, size: int | None) -> Probe:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(-1 if size is None else size)
    except OSError as error:
        return Probe("", None, f"can't be read: {error.strerror}")
    return probe_bytes(data)


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
