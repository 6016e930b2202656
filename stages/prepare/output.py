"""Where `prepare` writes: a folder, or a URL, whose files are made in a folder of this machine and put there one by one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ReskdError
from stages.remote.local_copy import naming_url
from stages.remote.mirror import Mirror
from stages.remote.url_path import Location
from stages.runtime.lock import locked_working_folder
from stages.shards.index import INDEX, rows_path

ARGUMENTS = "prepare.json"  # what the folder is made from; a run with other arguments is refused
QUARANTINE = "quarantine.jsonl"  # what is not in the data set, and why: path, kind, reason
REPORT = "report.jsonl"  # what is in the data set, but odd
WORK = ".prepare"  # the lock, notes of finished shards, unfinished tars; removed when the data set is finished
NOTES = f"{WORK}/notes"


@dataclass(frozen=True)
class Output:
    """The output `place` as the user gave it. Files are written into `folder`: `place` itself, or, for a URL, a folder of
    this machine, whose files `put` copies there.
    """

    place: Location
    folder: Path
    mirror: Mirror | None = None  # of `folder`, if `place` is a URL

    def names(self) -> list[str]:
        """The files and folders that were there at the start, without WORK."""
        if self.mirror:
            found = {name.partition("/")[0] for name in self.mirror.there}
        else:
            found = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        return sorted(found - {WORK})

    def tar_bytes(self, shard: str) -> int | None:
        """The size of a tar that was there at the start; None: there was none."""
        if self.mirror:
            return self.mirror.there.get(shard)
        tar = self.folder / shard
        return tar.stat().st_size if tar.exists() else None

    def put(self, *files: Path) -> None:
        """Put files of the folder at the URL, in this order. Raises Changed if somebody else has put others there."""
        for file in files if self.mirror else ():
            self.mirror.put(file.relative_to(self.folder).as_posix())

    def put_tar(self, tar: Path) -> None:
        """As `put`. The folder has no room for all tars: what is at the URL is removed from it."""
        if self.mirror:
            self.put(tar)
            tar.unlink()

    def remove_work(self) -> None:
        """Remove what only an unfinished data set needs."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        if self.mirror:
            self.mirror.remove_below(WORK)


@contextmanager
def output_at(place: Location) -> Iterator[Output]:
    """The output at `place`. For a URL its folder has what was made before, but for the tars, and is locked and removed.

    Raises ReskdError for a web server, and if another process of this machine writes to the URL. A ReskdError inside
    names the URL in place of the folder.
    """
    if isinstance(place, Path):
        yield Output(place, place)
        return
    if str(place).startswith("http"):
        raise ReskdError(f"{place} can't be written (a web server can only be read): give another output")
    with locked_working_folder(place) as folder, naming_url(place, folder):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        try:
            mirror = Mirror(place, folder)
            _fetch(mirror)
            yield Output(place, folder, mirror)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _fetch(mirror: Mirror) -> None:
    """Fetch what says how far the data set is: its own files, the notes of its shards, and the rows of these."""
    if ARGUMENTS not in mirror.there:
        return
    work = [name for name in mirror.there if name.startswith(f"{WORK}/")]
    noted = [name.removeprefix(f"{NOTES}/").removesuffix(".json") for name in work if name.startswith(f"{NOTES}/")]
    rows = [rows_path(mirror.folder, shard).relative_to(mirror.folder).as_posix() for shard in noted]
    mirror.fetch([ARGUMENTS, INDEX, QUARANTINE, REPORT, *work, *rows])
