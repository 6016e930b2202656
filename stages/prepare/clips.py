"""A clip that `prepare` packs, and the WebDataset keys of clips."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Frames:
    """Pictures of a folder that become one clip: `template % i` for each i in range(first, first + count)."""

    template: str
    first: int
    count: int
    fps: float
    offset: int | None = None  # from the list, if a folder holds several clips


@dataclass(frozen=True, slots=True)
class Clip:
    """A video to be packed. `name` is its path below the source, with slashes; it is the same on every machine.

    `labels` are the texts of the source; `classes.class_table` turns all labels into class numbers at once.
    """

    name: str
    path: Path
    size: int | None  # bytes; an estimate for pictures; None if the file doesn't exist
    labels: tuple[str, ...]
    where: str  # file and line of the annotation, for messages
    start: float | None = None  # seconds; if given, the clip is the part of its video from `start` to `end`
    end: float | None = None
    frames: Frames | None = None  # if given, the clip is encoded from these pictures, and `path` is their folder

    @property
    def identity(self) -> str:
        """A name that no other clip of the data set has: two clips may be parts of one video, or of one folder."""
        if self.frames is not None:
            part = "" if self.frames.offset is None else f"_{self.frames.offset}_{self.frames.count}"
            return f"{self.name}{part}.mp4"
        if self.start is None:
            return self.name
        stem, ext = os.path.splitext(self.name)
        return f"{stem}_{_seconds_text(self.start)}_{_seconds_text(self.end)}{ext}"


def safe_keys(names: Sequence[str]) -> list[str]:
    """A WebDataset key for each name: no dots, no slashes, and nothing else that a tar or a shell takes amiss.

    Names that would share a key, and names that are too long for a tar header, get a part of their digest. So a key
    depends only on its own name and on the names that would share the key.
    """
    keys = [re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(name)[0]).strip("_") for name in names]
    digests = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names]
    counts = Counter(keys)
    for length in (8, 16):
        keys = [k if k and len(k) <= 80 and counts[k] == 1 else f"{k[:60]}-{d[:length]}".lstrip("-")
                for k, d in zip(keys, digests, strict=True)]  # fmt: skip
        counts = Counter(keys)
    assert len(counts) == len(names)
    return keys


def _seconds_text(value: float) -> str:
    return f"{int(value):06d}" if value == int(value) else f"{value:.15g}"
