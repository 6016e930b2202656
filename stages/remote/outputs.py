"""Where the files of an output are written: at its path, or, for a URL, first in a folder of this machine; how they are put."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import ReskdError, StoreError
from cache.store import write_atomically
from stages.remote.local_copy import naming_url
from stages.remote.store import Changed
from stages.remote.url_path import PART, Location, UrlPath

MAX_PUT = 5 * 2**30  # bytes; S3 takes no more in one request, and only one request can be conditional


class NotPut(StoreError):
    """A store didn't take the files of an output: they stay in a folder of this machine, which the message names."""


def working_folder(output: Location) -> Path:
    """The folder that a run writes into: `output`, or, for a URL, a folder of its own in the system's temporary folder.

    For one URL it is the same at every start of this user on this machine (and with this TMPDIR). It isn't made here.
    """
    if isinstance(output, Path):
        return output
    return user_folder("reskd") / f"{output.name}-{hashlib.sha256(str(output).encode()).hexdigest()[:16]}"


def user_folder(name: str) -> Path:
    """The folder of this user and this name in the system's temporary folder. `make_private` makes it."""
    temporary = os.environ.get("TMPDIR") or tempfile.gettempdir()  # tempfile remembers its first answer
    return Path(temporary) / (f"{name}-{os.getuid()}" if hasattr(os, "getuid") else name)


def make_private(folder: Path) -> None:
    """Make a folder that only this user reads and writes. Raises ReskdError if another user has it already."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise ReskdError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")


def write_whole(file: Location, data: bytes) -> None:
    """Write a small file whole or not at all: by a rename, or, at a URL, by one request."""
    if isinstance(file, Path):
        write_atomically(file, data)
    else:
        file.write_bytes(data)


def total_bytes(output: Location) -> int:
    """The bytes of all files below a folder."""
    if isinstance(output, UrlPath):
        return sum(output.files().values())
    return sum(file.stat().st_size for file in output.rglob("*") if file.is_file())


@contextmanager
def written_at(output: Location) -> Iterator[Path]:
    """The path to write the file `output` at; files may be written beside it. For a URL all of them are put there at the end.

    A ReskdError inside names the URL in place of the local path, and nothing is put. Raises NotPut if the store doesn't take
    the files; after one of another output, which was written inside, the files are put all the same.
    """
    if isinstance(output, Path):
        yield output
        return
    inside = None
    with _folder_of_files() as folder:
        try:
            with naming_url(output, folder / output.name):
                yield folder / output.name
        except NotPut as error:
            inside = error
        try:
            for file in sorted(folder.iterdir()):
                output.with_name(file.name).upload(file)
        except StoreError as error:
            example = f" (`aws s3 cp --recursive {folder} {output.parent}`)" if output.url.startswith("s3:") else ""
            before = f"{inside}\n" if inside else ""
            raise NotPut(f"{before}{error}. The result is complete, and kept in {folder}: copy its files to {output.parent}"
                         f"{example}") from error  # fmt: skip
    if inside:
        raise inside


@contextmanager
def _folder_of_files() -> Iterator[Path]:
    """A temporary folder. It is removed at the end, but not with a NotPut."""
    folder = Path(tempfile.mkdtemp(prefix="reskd-"))
    try:
        yield folder
    except NotPut:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)


def put_known(file: UrlPath, data: bytes, known: str | None) -> str | None:
    """Put an object in place of the one with the ETag `known`; None: create it. Returns its ETag; None if others are there.

    The same content is as good: another run has put it, or this one, and the answer was lost.
    """
    try:
        return file.replace(data, known) if known else file.write_new(data)
    except (Changed, FileExistsError, FileNotFoundError):
        pass
    try:
        return _etag_if_same(file, data)
    except FileNotFoundError:
        return None


def _etag_if_same(file: UrlPath, data: bytes) -> str | None:
    """The ETag of an object with this content, which is compared part by part; None if it is another one."""
    if file.size() != len(data):
        return None
    etag, whole = file.etag(), memoryview(data)
    parts = [(start, min(start + PART, len(data))) for start in range(0, len(data), PART)]
    same = all(file.read_range(start, stop) == whole[start:stop] for start, stop in parts)
    return etag if same and file.etag() == etag else None  # it may have been replaced between two parts
