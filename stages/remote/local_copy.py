"""Files that libraries open by name: an object of a store is copied into a temporary folder for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.errors import ReskdError
from stages.remote.url_path import Location, UrlPath


@contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """A local file with the content of `path`: itself, or a copy of the object at a URL, for the time of the context.

    A ReskdError inside names the URL in place of the copy. Where there is no such object there is no such copy either, and
    whoever opens it says so. Raises StoreError if the store doesn't answer.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="reskd-") as folder:
        copy = Path(folder) / (path.name or "object")
        with suppress(FileNotFoundError):
            path.download(copy)
        with naming_url(path, copy):
            yield copy


@contextmanager
def naming_url(url: UrlPath, *local: Path) -> Iterator[None]:
    """Errors that name one of these local paths name the URL in its place."""
    try:
        yield
    except ReskdError as error:
        for path in local:
            error.args = tuple(a.replace(str(path), str(url)) if isinstance(a, str) else a for a in error.args)
        raise
