"""The files of a folder, and the videos of class folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.clips import Clip
from stages.shards.tar_scan import VIDEO_EXTENSIONS


def walk(source: Path, skip: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `source` down, with its file names, sorted. Hidden files, hidden folders (such as `._clip.mp4`,
    `.git`) and the folder `skip` are left out. Raises ReskdError for a folder that can't be read.
    """
    skip = skip.resolve()
    for folder, folders, files in os.walk(source, followlinks=True, onerror=_refuse_unreadable):
        parent = Path(folder).resolve()
        targets = {name: (parent / name).resolve() for name in folders if not name.startswith(".")}
        # A link to a folder above would be followed forever.
        folders[:] = sorted(n for n, target in targets.items() if target != skip and not parent.is_relative_to(target))
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def list_files(source: Path, skip: Path) -> list[Path]:
    """All files that `walk` gives, in its order, which is the same on every machine."""
    return [folder / name for folder, names in walk(source, skip) for name in names]


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


def extension(name: str) -> str:
    """The extension in lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()


def file_size(path: Path) -> int | None:
    """Bytes; None if there is no such file."""
    return os.path.getsize(path) if os.path.isfile(path) else None


def _refuse_unreadable(error: OSError) -> None:
    raise ReskdError(
        f"{error.filename}: folder can't be read ({error.strerror}). Correct its permissions, or move it away"
    )
