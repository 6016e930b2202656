"""The root of a cache in a store: the manifest, the constants and hidden files, which are changed in a local folder first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from cache.errors import ReskdError, StoreError
from cache.identity import CONSTANTS
from cache.store import METADATA, side_by_side
from cache.teacher_time import LOGS
from stages.remote.probe import PROBE
from stages.remote.store import Changed
from stages.remote.url_path import UrlPath

ATTEMPTS = 5  # to change the manifest, which others change, too
PASSING = (PROBE, ".engine-")  # objects that runs put for a moment


class PublishedRoot:
    """The files of the root of the cache at `url`, but for its logs, as the store has them and as they are in `folder`."""

    def __init__(self, url: UrlPath, folder: Path):
        self.url, self.folder = url, folder
        self._stored: dict[str, tuple[bytes, str]] = {}  # file -> digest and ETag of what the store has

    def pull(self) -> None:
        """Fetch what the store has. Raises ReskdError where it has something else than a cache."""
        names = [path.name for path in self.url.iterdir()]
        others = [name for name in names if not name.startswith(".") and name not in CONSTANTS]
        if METADATA not in names and others:
            raise ReskdError(f"{self.url} holds something else than a cache ({others[0]}): give another output")
        files = [n for n in names if n == METADATA or (n[0] == "." and not n.startswith(PASSING) and not is_log(n))]
        for folder in sorted({*names} & {*CONSTANTS}):
            files += [f"{folder}/{name}" for name in (self.url / folder).files()]
        self._stored.update(side_by_side(self.url, self._fetch, files))

    def change(self, work: Callable[[], object]) -> None:
        """`work` changes the root's files in the folder, then they are put. If others were faster, it works on theirs."""
        for _ in range(ATTEMPTS):
            work()
            try:
                return self._put()
            except (FileExistsError, Changed):
                self.pull()
        raise StoreError(f"{self.url}: others change its manifest all the time: wait until they end")

    def _fetch(self, name: str) -> tuple[str, tuple[bytes, str]]:
        etag = fetch(self.url, self.folder, name)
        return name, (_digest(self.folder / name), etag)

    def _put(self) -> None:
        """Put the root's files that have changed, the manifest last. Raises FileExistsError and Changed."""
        files = [p for p in self.folder.iterdir() if p.is_file() and not is_log(p.name) and p.name != METADATA]
        files += [p for name in CONSTANTS for p in (self.folder / name).glob("*")]
        for file in [*files, self.folder / METADATA]:
            name = file.relative_to(self.folder).as_posix()
            digest, (known, etag) = _digest(file), self._stored.get(name, (None, None))
            if digest is not None and digest != known:
                url = self.url / name
                put = url.write_new(file.read_bytes()) if etag is None else url.replace(file.read_bytes(), etag)
                self._stored[name] = digest, put


def is_log(name: str) -> bool:
    """Whether a file of the root is a log of teacher time."""
    return fnmatchcase(name, LOGS)


def fetch(url: UrlPath, folder: Path, name: str) -> str:
    """Fetch the object `name` below `url` to the same place below `folder`; returns its ETag."""
    file = folder / name
    try:
        data, etag = (url / name).read_with_etag()
    except FileNotFoundError:
        raise ReskdError(
            f"{url / name} is missing, and {url} isn't whole without it: see who deletes there, or give another output"
        ) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return etag


def _digest(file: Path) -> bytes | None:
    return hashlib.sha256(file.read_bytes()).digest() if file.is_file() else None
