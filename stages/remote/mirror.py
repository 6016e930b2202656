"""A folder of this machine whose files are put at a URL, one by one. What others have put there is never replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cache.store import side_by_side
from stages.remote.outputs import put_known
from stages.remote.store import Changed
from stages.remote.url_path import UrlPath


class Mirror:
    """`there`: the objects below `url` when this was made, name -> bytes. A name is the path below `url` and `folder`."""

    def __init__(self, url: UrlPath, folder: Path):
        self.url, self.folder = url, folder
        self.there = {name: size for name, size in url.files().items() if ".." not in name.split("/")}
        self._known: dict[str, tuple[bytes, str]] = {}  # name -> sha256 and ETag of what was fetched or put

    def fetch(self, names: Iterable[str]) -> None:
        """Copy those of these objects that are there into the folder. They may be replaced from then on."""
        side_by_side(self.url, self.fetch_again, [name for name in names if name in self.there])

    def fetch_again(self, name: str) -> None:
        """As `fetch`, for an object that another run may have put since."""
        try:
            data, etag = (self.url / name).read_with_etag()
        except FileNotFoundError:  # another run has finished, and removed it
            return
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        self._known[name] = hashlib.sha256(data).digest(), etag

    def put(self, name: str) -> None:
        """Put a file, unless the object has its content. Raises Changed if the object isn't one that was fetched or put."""
        data = (self.folder / name).read_bytes()
        digest, (known, seen) = hashlib.sha256(data).digest(), self._known.get(name, (None, None))
        if digest == known:
            return
        etag = put_known(self.url / name, data, seen)
        if etag is None:
            raise Changed(f"{self.url / name} isn't what this run makes, and stays as it is: another run writes there, or one of "
                          "another version has. Let it end, or delete what it left, or give another output")  # fmt: skip
        self._known[name] = digest, etag

    def remove_below(self, folder: str) -> None:
        """Delete the objects of a folder. Nothing is asked of the store if it had none, and none was put there."""
        if any(name.startswith(f"{folder}/") for name in (*self.there, *self._known)):
            side_by_side(self.url, lambda name: (self.url / folder / name).unlink(), (self.url / folder).files())
