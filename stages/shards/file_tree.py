"""The files of a folder and of the folders in it."""

import os
from collections.abc import Iterator
from pathlib import Path

from cache.errors import ReskdError


def walk(source: Path, skip: Path | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `source` down, with its file names, sorted. Hidden files, hidden folders (such as `._clip.mp4`,
    `.git`) and the folder `skip` are left out. Raises ReskdError for a folder that can't be read.
    """
    skip = skip and skip.resolve()
    for folder, folders, files in os.walk(source, followlinks=True, onerror=_refuse_unreadable):
        parent = Path(folder).resolve()
        targets = {name: (parent / name).resolve() for name in folders if not name.startswith(".")}
        # A link to a folder above would be followed forever.
        folders[:] = sorted(n for n, target in targets.items() if target != skip and not parent.is_relative_to(target))
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def list_files(source: Path, skip: Path | None = None) -> list[Path]:
    """All files that `walk` gives, in its order, which is the same on every machine."""
    return [folder / name for folder, names in walk(source, skip) for name in names]


def extension(name: str) -> str:
    """The extension in lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()


def _refuse_unreadable(error: OSError) -> None:
    raise ReskdError(
        f"{error.filename}: folder can't be read ({error.strerror}). Correct its permissions, or move it away"
    )
