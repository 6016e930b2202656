"""Where `prepare` writes: a folder, or a URL, whose files are made in a folder of this machine and put there one by one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.remote.local_copy import naming_url
from stages.remote.mirror import Mirror
from stages.remote.outputs import make_private, working_folder
from stages.remote.probe import PROBE, check_not_on_web_server
from stages.remote.url_path import Location, UrlPath
from stages.runtime.interrupt import RUN_AGAIN, interrupted_by_sigterm
from stages.runtime.lock import locked_working_folder
from stages.shards.dataset import Dataset, open_dataset
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
        return sorted(name for name in found - {WORK} if not (self.mirror and name.startswith(PROBE)))

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

    def with_local_rows(self, data: Dataset) -> Dataset:
        """The finished data set, which reads its rows in the folder. Those that aren't there are fetched many at once."""
        if not self.mirror:
            return data
        rows = [rows_path(self.folder, entry.name) for entry in data.shards]
        self.mirror.fetch(file.relative_to(self.folder).as_posix() for file in rows if not file.exists())
        return open_dataset(self.folder)

    def remove_work(self) -> None:
        """Remove what only an unfinished data set needs."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        if self.mirror:
            self.mirror.remove_below(WORK)


def folder_of(place: Location) -> Path:
    """The folder that the files of an output are made in: the output itself, or, for a URL, one that only `prepare` uses."""
    folder = working_folder(place)
    return folder if isinstance(place, Path) else folder.with_name(f"{folder.name}.prepare")


@contextmanager
def output_at(place: Location, *, dry_run: bool = False) -> Iterator[Output]:
    """The output at `place`. For a URL its folder has what was made before, but for the tars; it is locked, and removed at
    the end, also after a SIGTERM. A dry run has a folder of its own, and no lock.

    Raises ReskdError for a web server, and if another process of this machine writes to the URL. A ReskdError inside
    names the URL in place of the folder.
    """
    if isinstance(place, Path):
        yield Output(place, place)
        return
    check_not_on_web_server(place)
    made_in = _folder_of_dry_run if dry_run else _locked_folder
    with interrupted_by_sigterm(RUN_AGAIN), made_in(place) as folder, naming_url(place, folder):
        mirror = Mirror(place, folder)
        _fetch(mirror)
        yield Output(place, folder, mirror)


@contextmanager
def _locked_folder(url: UrlPath) -> Iterator[Path]:
    """An empty folder. All that an earlier run has left in it can be made again."""
    folder = folder_of(url)
    with locked_working_folder(url):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folder_of_dry_run(url: UrlPath) -> Iterator[Path]:
    parent = folder_of(url).parent
    make_private(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix="dry-run-") as folder:
        yield Path(folder)


def _fetch(mirror: Mirror) -> None:
    """Fetch what says how far the data set is: its own files, the notes of its shards, and the rows of these."""
    if ARGUMENTS not in mirror.there:
        return
    work = [name for name in mirror.there if name.startswith(f"{WORK}/")]
    noted = [name.removeprefix(f"{NOTES}/").removesuffix(".json") for name in work if name.startswith(f"{NOTES}/")]
    rows = [rows_path(mirror.folder, shard).relative_to(mirror.folder).as_posix() for shard in noted]
    mirror.fetch([ARGUMENTS, INDEX, QUARANTINE, REPORT, *work, *rows])
