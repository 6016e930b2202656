"""Finds the files or folders that a list means: at the listed path, with another extension, or by name elsewhere."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.shards.file_tree import extension, walk
from stages.shards.tar_scan import VIDEO_EXTENSIONS


class PathIndex:
    """Paths below `folder`, relative and with slashes, and the ways in which lists write them."""

    def __init__(self, folder: Path, paths: Iterable[str]):
        self.folder, self.paths = folder, frozenset(paths)
        self._by_bare_path, self._by_stem = {}, {}
        for path in sorted(self.paths):
            self._by_bare_path.setdefault(_bare(path), []).append(path)
            self._by_stem.setdefault(_bare(path).rpartition("/")[2], []).append(path)

    def at_path(self, listed: str) -> tuple[str, ...]:
        """The path as listed; if it doesn't exist, the same path with any other extension of a video."""
        listed = os.path.relpath(self.folder / self._with_slashes(listed), self.folder).replace(os.sep, "/")
        return (listed,) if listed in self.paths else tuple(self._by_bare_path.get(_bare(listed), ()))

    def with_name(self, listed: str, taken: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """The paths in any folder that have the name of `listed`, without those in `taken`."""
        stem = _bare(self._with_slashes(listed).rstrip("/").rpartition("/")[2])
        return tuple(path for path in self._by_stem.get(stem, ()) if path not in taken)

    def _with_slashes(self, listed: str) -> str:
        """A Windows path with slashes instead of backslashes; other paths as they are."""
        return listed if "/" in listed or listed in self.paths else listed.replace("\\", "/")


def index_videos(folder: Path, skip: Path) -> PathIndex:
    """The videos below a folder, without those in the folder `skip`."""
    videos = (parent / name for parent, names in walk(folder, skip) for name in names
              if extension(name) in VIDEO_EXTENSIONS)  # fmt: skip
    return PathIndex(folder, (path.relative_to(folder).as_posix() for path in videos))


def match_paths(index: PathIndex, listed: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each entry, whose names are tried in their order: one path, none, or several if the list is ambiguous.

    First each entry gets what lies at its listed path. Then the entries without a path are searched by name, among the
    paths that no entry has: if `x/v0` doesn't exist, it never gets the `y/v0` of another entry.
    """
    at_paths = [next(filter(None, map(index.at_path, names)), ()) for names in listed]
    taken = frozenset(path for matches in at_paths for path in matches)
    return [
        matches or next(filter(None, (index.with_name(name, taken) for name in names)), ())
        for matches, names in zip(at_paths, listed, strict=True)
    ]


def same_ending(path: str, other: str) -> bool:
    """Whether one of two paths ends with the other: lists leave folders out, or begin further up. `a b` equals `a_b`."""
    pairs = zip(reversed(_parts(path)), reversed(_parts(other)), strict=False)
    return all(part == other_part for part, other_part in pairs)


def _parts(path: str) -> list[str]:
    return os.path.normpath(_bare(path.replace("\\", "/").replace(" ", "_"))).strip("/").split("/")


def _bare(path: str) -> str:
    """Without a video's extension; other dots stay. In the Unicode form NFC, because macOS writes NFD."""
    path = unicodedata.normalize("NFC", path)
    return os.path.splitext(path)[0] if extension(path) in VIDEO_EXTENSIONS else path
