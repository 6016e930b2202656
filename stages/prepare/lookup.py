"""Names in published lists -> what lies below a folder: as listed, with an extension, or elsewhere by its own name."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.prepare.annotations import extension, walk
from stages.shards.tar_scan import VIDEO_EXTENSIONS


def find_videos(folder: Path, skip: Path) -> "Names":
    """The videos below a folder, from one walk."""
    found = (here / name for here, names in walk(folder, skip) for name in names if extension(name) in VIDEO_EXTENSIONS)
    return Names(folder, (path.relative_to(folder).as_posix() for path in found))


class Names:
    """Paths below `folder`, with slashes, and how lists call them."""

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.names = folder, frozenset(names)
        self._bare, self._stems = {}, {}
        for name in sorted(self.names):
            self._bare.setdefault(_bare(name), []).append(name)
            self._stems.setdefault(_bare(name).rpartition("/")[2], []).append(name)

    def at(self, listed: str) -> tuple[str, ...]:
        """What lies where it is listed; else, there, with any other extension of a video."""
        listed = os.path.relpath(self.folder / self._slashed(listed), self.folder).replace(os.sep, "/")
        return (listed,) if listed in self.names else tuple(self._bare.get(_bare(listed), ()))

    def called(self, listed: str, taken: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """What has that name, in whichever folder, but for those that are taken."""
        stem = _bare(self._slashed(listed).rstrip("/").rpartition("/")[2])
        return tuple(name for name in self._stems.get(stem, ()) if name not in taken)

    def _slashed(self, listed: str) -> str:
        """A path of Windows, with slashes."""
        return listed if "/" in listed or listed in self.names else listed.replace("\\", "/")


def resolve(names: Names, listed: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each entry what the first of its names fits: one path, none, or several, among which nobody here can choose.

    First all that lie where they are listed; then, for the rest and by name alone, what no entry has taken: a list
    whose `x/v0` is absent never gets the `y/v0` of another entry.
    """
    found = [next(filter(None, map(names.at, entry)), ()) for entry in listed]
    taken = frozenset(name for fits in found for name in fits)
    return [
        fits or next(filter(None, (names.called(name, taken) for name in entry)), ())
        for fits, entry in zip(found, listed, strict=True)
    ]


def agree(listed: str, found: str) -> bool:
    """Whether one of two paths ends with the other: lists leave folders out, or begin further up. `a b` is `a_b`."""
    pairs = zip(reversed(_parts(listed)), reversed(_parts(found)), strict=False)
    return all(one == other for one, other in pairs)


def _parts(name: str) -> list[str]:
    return os.path.normpath(_bare(name.replace("\\", "/").replace(" ", "_"))).strip("/").split("/")


def _bare(name: str) -> str:
    """Without the extension, where it is one of a video: a name may have other dots. In NFC, as macOS writes NFD."""
    name = unicodedata.normalize("NFC", name)
    return os.path.splitext(name)[0] if extension(name) in VIDEO_EXTENSIONS else name
