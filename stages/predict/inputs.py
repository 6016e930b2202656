"""The videos that `predict` is given: files, folders, globs, a list on standard input, data sets."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache.errors import ReskdError
from stages.predict.videos import FileVideo, RowVideo, Video
from stages.remote.url_path import Location, UrlPath
from stages.runtime.terminal import console
from stages.shards.dataset import open_dataset
from stages.shards.file_tree import extension, list_files
from stages.shards.index import INDEX
from stages.shards.tar_scan import VIDEO_EXTENSIONS
from stages.stream.frame_source import open_frames

STDIN = "-"


@dataclass
class _Found:
    videos: list[Video] = field(default_factory=list)
    passed_over: int = 0  # files in folders and globs that are no videos by their extension
    quarantined: int = 0  # rows of data sets


def find_videos(inputs: Sequence[Location]) -> list[Video]:
    """The videos in the order of the inputs; in a folder and a glob by name. What is passed over is counted and said.

    A file that is named itself is taken whatever its extension; so is each line of standard input (`-`), even one that
    names no file: it will be an error of that video.
    A URL is that of a data set.
    Raises ReskdError if an input doesn't exist, a data set can't be opened, or no video is found.
    """
    found = _Found()
    for given in inputs:
        if isinstance(given, UrlPath):
            _add_data_set(found, given)
        elif str(given) == STDIN:
            for path in _lines_of_stdin():
                _add(found, path) if os.path.isdir(path) else found.videos.append(FileVideo(path))
        elif os.path.lexists(given):
            _add(found, given)
        else:
            _add_glob(found, str(given))
    if found.passed_over:
        console.print(f"{found.passed_over} files passed over: no videos by their extension", highlight=False)
    if found.quarantined:
        console.print(f"{found.quarantined} clips of the data sets are in quarantine and left out", highlight=False)
    if not found.videos:
        raise ReskdError(f"no video in {', '.join(map(str, inputs))}: give video files, folders of videos, or data sets made "
                         f"by prepare; known as videos: {', '.join(sorted(VIDEO_EXTENSIONS))}")  # fmt: skip
    return found.videos


def _add(found: _Found, path: Path) -> None:
    """Add a file, the rows of a data set, or the videos of a folder."""
    if not path.is_dir():
        found.videos.append(FileVideo(path))
    elif (path / INDEX).is_file():
        _add_data_set(found, path)
    else:
        before = len(found.videos)
        _add_known(found, list_files(path))
        if len(found.videos) == before:
            console.print(f"[yellow]warning[/] no video in {path}", highlight=False, soft_wrap=True)


def _add_data_set(found: _Found, path: Location) -> None:
    """Add the usable rows of a data set. Raises ReskdError as `open_dataset` does: from a URL, nothing else is read."""
    data, _ = open_frames(open_dataset(path), None)
    rows = data.usable_rows()
    found.quarantined += sum(entry.clips for entry in data.shards) - sum(map(len, rows))
    found.videos += [
        RowVideo(data, entry.name, int(row))
        for entry, of_shard in zip(data.shards, rows, strict=True)
        for row in of_shard
    ]


def _add_known(found: _Found, files: Iterable[Path]) -> None:
    """Add the files whose extension is a video's, and count the others."""
    for path in files:
        if extension(path.name) in VIDEO_EXTENSIONS:
            found.videos.append(FileVideo(path))
        else:
            found.passed_over += 1


def _add_glob(found: _Found, pattern: str) -> None:
    names = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
    if not names:
        what = "nothing matches this pattern" if glob.has_magic(pattern) else "no such file or folder"
        raise ReskdError(
            f"{pattern}: {what}. Give video files, folders, data sets, or a pattern in quotes ('videos/*.mp4')"
        )
    for path in map(Path, names):
        if not path.is_dir():
            _add_known(found, [path])
        elif "**" not in pattern:  # whose matches name the files of the folder, too
            _add(found, path)


def _lines_of_stdin() -> list[Path]:
    """The paths on standard input, one a line, in the system's bytes: they may not be UTF-8. Raises ReskdError for a NUL."""
    content = getattr(sys.stdin, "buffer", sys.stdin).read()
    text = os.fsdecode(content) if isinstance(content, bytes) else content
    if "\0" in text:
        before = text.split("\0", 1)[0].splitlines()
        raise ReskdError(
            f"standard input: there is a NUL behind {(before or [''])[-1][:200]!r}: give one path a line, and leave -print0 out "
            "(find . -name '*.mp4' | pipeline.py predict net.safetensors -)"
        )
    lines = (line.rstrip("\r") for line in text.split("\n"))
    return [Path(line) for line in lines if line]
