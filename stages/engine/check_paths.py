"""Paths on the nodes of an engine: whether a node sees the files that the driver sees."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.store import METADATA
from stages.remote.url_path import Location, UrlPath

REMEDY = "put it into a folder that all nodes share, or at a URL"


def paths_in(values: Any) -> Iterator[Location]:
    """All paths and URLs in a config, or in parts of one."""
    if isinstance(values, Mapping):
        values = values.values()
    elif isinstance(values, Location):
        yield values
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Location):
        for value in values:
            yield from paths_in(value)


@contextmanager
def marked(folder: Location) -> Iterator[Location]:
    """A file in `folder` while the context lasts, by which a node sees whether its folder of that name is this one."""
    for left in folder.glob(".engine-*") if isinstance(folder, Path) else ():  # by runs that were killed
        left.unlink(missing_ok=True)
    file = folder / f".engine-{secrets.token_hex(8)}"
    file.write_bytes(file.name.encode())
    try:
        yield file
    finally:
        with suppress(OSError, ReskdError):
            file.unlink(missing_ok=True)


def check_paths(inputs: Iterable[Location], mark: Location) -> None:
    """Raise ReskdError, which names the path, if this node lacks one of the inputs, or has another output folder.

    `mark`: the file of `marked`. A file is written beside it.
    """
    for path in inputs:
        if not _is_there(path):
            raise ReskdError(f"{_named(path)} is not there: {REMEDY}")
    try:
        same = mark.read_bytes() == mark.name.encode()
    except OSError:
        same = False
    if not same:
        raise ReskdError(f"{_named(mark.parent)} is not the folder that the driver writes into: {REMEDY}")
    own = mark.with_name(f"{mark.name}-{secrets.token_hex(4)}")
    try:
        own.write_bytes(b"")
        own.unlink(missing_ok=True)
    except OSError as error:
        raise ReskdError(
            f"{_named(mark.parent)} can't be written ({error.strerror}): correct its permissions"
        ) from error


def _is_there(path: Location) -> bool:
    """Whether there is a file; in a store a file, a data set or a cache. Nothing is listed there: that may take long, and a
    web server can't do it."""
    return (
        path.exists()
        if isinstance(path, Path)
        else any(p.is_file() for p in (path / "index.json", path / METADATA, path))
    )


def _named(path: Location) -> str:
    return str(path if isinstance(path, UrlPath) else path.absolute())
