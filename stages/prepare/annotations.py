"""Which videos there are and what they are labelled: class folders and CSV files.

A label is kept as the text its source has; `classes.class_table` turns all of them into class numbers at once.
"""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ReskdError
from stages.shards.tar_scan import VIDEO_EXTENSIONS


@dataclass(frozen=True, slots=True)
class Frames:
    """Pictures in a folder, of which a clip is encoded: `template % i` for i in range(first, first + count)."""

    template: str
    first: int
    count: int
    fps: float
    offset: int | None = None  # as listed, where one folder holds several clips


@dataclass(frozen=True, slots=True)
class Clip:
    """A video to be packed. `name` is its path below the source, with slashes; the same on every machine."""

    name: str
    path: Path
    size: int | None  # bytes, of pictures an estimate; None where there is no such file
    labels: tuple[str, ...]
    where: str  # of the annotation, for messages
    start: float | None = None  # seconds: the clip is this part of its video, where given
    end: float | None = None
    frames: Frames | None = None  # the clip is encoded from them; `path` is their folder

    @property
    def identity(self) -> str:
        """A name that no other clip of the data set has: two clips may be parts of one video, or of one folder."""
        if self.frames is not None:
            part = "" if self.frames.offset is None else f"_{self.frames.offset}_{self.frames.count}"
            return f"{self.name}{part}.mp4"
        if self.start is None:
            return self.name
        stem, ext = os.path.splitext(self.name)
        return f"{stem}_{_seconds(self.start)}_{_seconds(self.end)}{ext}"


def list_files(source: Path, skip: Path) -> list[Path]:
    """Files below a folder in a fixed order, without hidden ones (`._clip.mp4`) and those of the folder `skip`."""
    return [folder / name for folder, names in walk(source, skip) for name in names]


def walk(source: Path, skip: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `source` down, with its files sorted; without hidden ones, and without the folder `skip`."""
    skip = skip.resolve()
    for folder, folders, files in os.walk(source, followlinks=True, onerror=_unreadable):
        here = Path(folder).resolve()
        # A link to a folder above would be followed for ever.
        below = [n for n in folders if not here.is_relative_to(t := (here / n).resolve()) and t != skip]
        folders[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def list_videos(source: Path, files: Sequence[Path]) -> list[Clip]:
    """The videos among the files of a folder, sorted by name. Their class is their first folder; none: unlabelled."""
    clips = []
    for path in files:
        if extension(path.name) in VIDEO_EXTENSIONS:
            name = path.relative_to(source).as_posix()
            clips.append(Clip(name, path, file_size(path), tuple(name.split("/")[:-1][:1]), str(path)))
    flat = next((clip for clip in clips if not clip.labels), None)
    if flat and any(clip.labels for clip in clips):
        raise ReskdError(f"{flat.path}: a video beside class folders, so its class is unknown. Move it into a folder, "
                         "or give a CSV of `path,label`")  # fmt: skip
    return sorted(clips, key=lambda clip: clip.name)


def list_csv(file: Path, videos: Path) -> list[Clip]:
    """Lines `path,label[,label...]`, paths relative to `videos`; `path,` is unlabelled; a first line that begins with
    `path`, or is a name without an extension and then `label` or `class`, is a header. Files that aren't there are
    listed too, with size None.
    """
    clips, lines = [], {}
    for line, fields in _csv_lines(file):
        where = f"{file}, line {line}"
        if len(fields) < 2:
            raise ReskdError(
                f"{where}: {fields[0]!r} has no label. Write `path,label`, or `path,` for an unlabelled clip"
            )
        path = videos / fields[0]
        name = os.path.relpath(path, videos).replace(os.sep, "/")
        if not fields[0] or name in lines:
            what = f"{fields[0]!r} is listed before, in line {lines[name]}" if fields[0] else "no path"
            raise ReskdError(f"{where}: {what}. Keep one line for each video, with all of its labels")
        lines[name] = line
        clips.append(Clip(name, path, file_size(path), tuple(dict.fromkeys(filter(None, fields[1:]))), where))
    if not clips:
        raise ReskdError(f"{file}: no clip in it. Write lines `path,label`")
    return sorted(clips, key=lambda clip: clip.name)


def safe_keys(names: Sequence[str]) -> list[str]:
    """A WebDataset key for each name: no dots, slashes, or anything else that tar or a shell may trip over. Names that
    would share a key, and those too long for a tar header, get part of their digest; so a key depends on the clashes
    of its name alone.
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


def extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def file_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _seconds(value: float) -> str:
    return f"{int(value):06d}" if value == int(value) else f"{value:.15g}"


def _unreadable(error: OSError) -> None:
    raise ReskdError(
        f"{error.filename}: folder can't be read ({error.strerror}). Mend its permissions, or move it away"
    )


def _is_header(fields: list[str]) -> bool:
    second = fields[1].lower() if len(fields) > 1 else ""
    return fields[0].lower() == "path" or (second in ("label", "labels", "class") and not extension(fields[0]))


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            for number, fields in enumerate(reader):
                fields = [field.strip() for field in fields]
                if any(fields) and not (number == 0 and _is_header(fields)):
                    yield reader.line_num, fields
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ReskdError(
            f"{file}: not a readable CSV ({error}). Write lines `path,label[,label...]`, in UTF-8"
        ) from error
