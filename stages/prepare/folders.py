"""The videos of class folders."""

import os
from collections.abc import Sequence
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.clips import Clip
from stages.shards.file_tree import extension
from stages.shards.tar_scan import VIDEO_EXTENSIONS


def list_videos(source: Path, files: Sequence[Path]) -> list[Clip]:
    """The videos among `files`, sorted by name. A video's class is the first folder below `source`; a video directly in
    `source` is unlabelled. Raises ReskdError if there are both.
    """
    clips = []
    for path in files:
        if extension(path.name) in VIDEO_EXTENSIONS:
            name = path.relative_to(source).as_posix()
            clips.append(Clip(name, path, file_size(path), tuple(name.split("/")[:-1][:1]), str(path)))
    unlabelled = next((clip for clip in clips if not clip.labels), None)
    if unlabelled and any(clip.labels for clip in clips):
        raise ReskdError(f"{unlabelled.path}: a video beside class folders, so its class is unknown. Move it into a "
                         "folder, or give a CSV of `path,label`")  # fmt: skip
    return sorted(clips, key=lambda clip: clip.name)


def file_size(path: Path) -> int | None:
    """Bytes; None if there is no such file."""
    return os.path.getsize(path) if os.path.isfile(path) else None
