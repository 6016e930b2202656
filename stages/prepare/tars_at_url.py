"""Existing tars at a URL: they are listed once, and each is copied to this machine while it is read."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.output import WORK
from stages.remote.url_path import Location, UrlPath
from stages.shards.file_tree import extension
from stages.shards.tar_scan import VIDEO_EXTENSIONS

_COPIES = f"{WORK}/tars"  # a folder of the working folder


def list_tars(source: UrlPath, skip: Location) -> dict[str, int]:
    """The tars below a URL, without hidden ones, and without those below `skip`: name -> bytes.

    Raises ReskdError if there are none, or videos beside them.
    """
    if source.on_web_server:
        raise ReskdError(f"{source}: a web server can't say which tars it has. Copy them into a folder or a bucket")
    hidden = f"{skip}/".removeprefix(f"{source}/") if str(skip).startswith(f"{source}/") else "."
    found = {name: size for name, size in source.files().items()
             if not name.startswith(hidden) and not any(part.startswith(".") for part in name.split("/"))}  # fmt: skip
    tars = {name: size for name, size in found.items() if name.endswith(".tar")}
    video = next((name for name in found if extension(name) in VIDEO_EXTENSIONS), None)
    if video or not tars:
        raise ReskdError(f"{source}: {f'a video ({video})' if video else 'no tar shards'} below it. Of a URL only tar shards are "
                         "indexed, at their place; copy videos, CSVs and annotations into a folder")  # fmt: skip
    return tars


def kept_tars(tars: Mapping[str, int], folder: Path) -> set[str]:
    """Those of the tars that need not be fetched again for their second look: half of the disk's free room takes them."""
    room = shutil.disk_usage(folder).free / 2
    return {name for name, total in zip(tars, accumulate(tars.values()), strict=True) if total <= room}


def copy_of(folder: Path, name: str) -> Path:
    """Where a copy of a tar lies, if there is one. `folder`: the working folder."""
    return folder / _COPIES / name


@contextmanager
def local_tar(source: Location, name: str, size: int, folder: Path, *, keep: bool) -> Iterator[Path]:
    """The tar `name` of `source` as a local file: itself, or a copy, which stays in `folder` for a later look with `keep`.

    A ReskdError inside names the URL in place of the copy. Raises ReskdError for a tar that was replaced since it was listed,
    or since its first copy, and if the disk has no room.
    """
    if isinstance(source, Path):
        yield source / name
        return
    copy = copy_of(folder, name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.exists():
        _download(source / name, size, copy)
    try:
        yield copy
    except ReskdError as error:
        error.args = (str(error).replace(str(copy), str(source / name)), *error.args[1:])
        raise
    finally:
        if not keep:
            copy.unlink(missing_ok=True)


def _download(tar: UrlPath, size: int, copy: Path) -> None:
    free = shutil.disk_usage(copy.parent).free
    if size > free:
        raise ReskdError(f"{tar}: {size / 1e9:.1f} GB needed for a copy in the temporary folder, {free / 1e9:.1f} GB free. Make "
                         "room, or set TMPDIR to a folder of a larger disk")  # fmt: skip
    try:
        before = tar.etag()
        tar.download(copy)
        after = tar.etag()
    except FileNotFoundError as error:
        raise ReskdError(f"{tar}: deleted since it was listed. Put it back, and run `prepare` again") from error
    first = copy.with_name(f"{copy.name}.etag")  # of the first copy, from which the labels are known
    if not first.exists():
        first.write_text(before)
    if copy.stat().st_size != size or not before == after == first.read_text():
        raise ReskdError(f"{tar}: replaced since it was listed. Run `prepare` again when nothing writes there")
