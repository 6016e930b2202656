"""Where the files of an output are written: at its path, or, for a URL, first in a folder of this machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.remote.url_path import Location


def working_folder(output: Location) -> Path:
    """The folder that a run writes into: `output`, or, for a URL, a folder of its own in the system's temporary folder.

    For one URL it is the same at every start of this user on this machine (and with this TMPDIR). It isn't made here.
    """
    if isinstance(output, Path):
        return output
    temporary = os.environ.get("TMPDIR") or tempfile.gettempdir()  # tempfile remembers its first answer
    user = f"reskd-{os.getuid()}" if hasattr(os, "getuid") else "reskd"
    return Path(temporary) / user / f"{output.name}-{hashlib.sha256(str(output).encode()).hexdigest()[:16]}"


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


@contextmanager
def written_at(output: Location) -> Iterator[Path]:
    """The path to write the file `output` at; files may be written beside it. For a URL all of them are put there at the end.

    Raises StoreError if the store doesn't take them: they are lost then.
    """
    if isinstance(output, Path):
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="reskd-") as folder:
        yield Path(folder) / output.name
        for file in sorted(Path(folder).iterdir()):
            output.with_name(file.name).upload(file)
