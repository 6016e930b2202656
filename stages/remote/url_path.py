"""Files in object stores and on web servers, with the methods of `pathlib.Path`: one function reads local and remote files."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cache.errors import ReskdError
from stages.remote.store import Changed, request

PART = 64 << 20  # bytes that are read by one request
PARTS_AT_ONCE = 4  # of one object
SCHEMES = ("s3", "gs", "az", "http", "https")


@dataclass(frozen=True, order=True)
class UrlPath:
    """A file or folder at a URL: `s3://bucket/folder/file`, `gs://`, `az://`, and `http(s)://` for reading.

    It is small when pickled. A process opens its connections at its first request. A fork of such a process can't use
    them: start fresh processes (see `may_fork`).

    All methods raise FileNotFoundError (an OSError) for an object that isn't there, and StoreError if the store doesn't
    answer in time, refuses the credentials, or has no such bucket. What the store calls temporary is tried again until then.
    """

    url: str

    def __post_init__(self):
        scheme, _, rest = self.url.partition("://")
        if scheme not in SCHEMES or not rest.split("/")[0]:
            raise ReskdError(
                f"{self.url}: not a URL of a store; they begin with {', '.join(s + '://' for s in SCHEMES)}"
            )
        if "@" in rest.split("/")[0] or (scheme.startswith("http") and re.search("[?#]", rest)):
            raise ReskdError(f"{scheme}://…: credentials and queries may not be in a URL, since it is printed and stored. Give "
                             "credentials in the environment")  # fmt: skip
        object.__setattr__(self, "url", f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}")

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | PurePosixPath) -> UrlPath:
        if str(name).startswith("/"):
            raise ReskdError(
                f"{name}: a path of one machine, and {self.url} lies in a store: put it into the store, too"
            )
        key = posixpath.normpath(posixpath.join(self.key, str(name)))
        if key.startswith(".."):
            raise ReskdError(f"{self.url}/{name} leads out of {self.root}")
        return UrlPath(self.root if key == "." else f"{self.root}/{key}")

    @property
    def key(self) -> str:
        """The path below the bucket or the web server."""
        return self.url.partition("://")[2].partition("/")[2]

    @property
    def root(self) -> str:
        """The URL of the bucket or the web server."""
        return self.url.removesuffix(f"/{self.key}") if self.key else self.url

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> UrlPath:
        return UrlPath(f"{self.root}/{PurePosixPath(self.key).parent}") if "/" in self.key else UrlPath(self.root)

    def with_name(self, name: str) -> UrlPath:
        return self.parent / name

    @property
    def on_web_server(self) -> bool:
        """Whether it is at http(s)://, which is only read, and can't be listed."""
        return self.url.startswith("http")

    def relative_to(self, folder: UrlPath) -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(folder.key)

    def read_bytes(self) -> bytes:
        return self.read_with_etag()[0]

    def read_with_etag(self) -> tuple[bytes, str]:
        """The content and the store's name for this state of it, which `replace` takes.

        A large object is read in parts, each of which has its own time. Raises Changed if it is replaced meanwhile.
        """

        def get(o: Any, store: Any) -> tuple[bytes, Any]:
            found = o.get(store, self.key)
            return b"" if found.meta["size"] > PART else bytes(found.bytes()), found.meta

        data, meta = self._do("get", get)
        if meta["size"] > PART:
            data = b"".join(self._read_part(start, meta) for start in range(0, meta["size"], PART))
        return data, self._etag(meta)

    def download(self, file: Path) -> None:
        """Copy the content into a local file, some parts at once. Raises Changed if it is replaced or deleted meanwhile.

        Without such an object, and after an error, there is no file.
        """
        meta = self._do("head", lambda o, store: o.head(store, self.key))
        file.write_bytes(b"" if meta["size"] > PART else self.read_bytes())

        def copy(start: int) -> None:
            with file.open("r+b") as out:
                out.seek(start)
                out.write(self._read_part(start, meta))

        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                list(pool.map(copy, range(0, meta["size"], PART) if meta["size"] > PART else ()))
        except BaseException as error:
            file.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise Changed(
                    f"{self.url}: it was deleted while it was read. See who deletes there, and run again"
                ) from None
            raise

    def _read_part(self, start: int, meta: Any) -> bytes:
        """The part of a large object that begins at `start`, of the state that `meta` tells of."""
        options = {"range": (start, min(start + PART, meta["size"]))}
        if meta["e_tag"]:
            options["if_match"] = meta["e_tag"]
        return self._do("get", lambda o, store: bytes(o.get(store, self.key, options=options).bytes()))

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`; fewer if the object ends before."""
        return self._do("get", lambda o, store: bytes(o.get_range(store, self.key, start=start, end=stop)))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The whole content, in memory."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def size(self) -> int:
        return self._do("head", lambda o, store: o.head(store, self.key)["size"])

    def etag(self) -> str:
        return self._do("head", lambda o, store: self._etag(o.head(store, self.key)))

    def etag_or_none(self) -> str | None:
        """None: no such object."""
        try:
            return self.etag()
        except FileNotFoundError:
            return None

    def is_file(self) -> bool:
        try:
            self.size()  # a web server may have no ETags
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object below this path. A web server has no folders that could be asked for."""
        return not self.on_web_server and next(self.iterdir(), None) is not None

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[UrlPath]:
        """The objects and folders of a folder. One request a thousand of them: not for hot paths."""
        listed = self._do("list", lambda o, store: o.list_with_delimiter(store, self.key or None))
        names = [*listed["common_prefixes"], *(found["path"] for found in listed["objects"])]
        yield from (UrlPath(f"{self.root}/{name}") for name in sorted(names) if name != self.key)

    def files(self) -> dict[str, int]:
        """Every object below this folder: its path below it -> its size in bytes."""
        found = self._do("list", lambda o, store: [e for part in o.list(store, self.key or None) for e in part])
        return {e["path"].removeprefix(f"{self.key}/"): e["size"] for e in found if e["path"] != self.key}

    def write_bytes(self, data: bytes) -> str:
        """Put the object, whatever was there. Returns its ETag."""
        return self._do("put", lambda o, store: self._etag(o.put(store, self.key, data)))

    def upload(self, file: Path) -> str:
        """Put the content of a local file, in parts if it is large. Returns its ETag."""
        return self._do("put", lambda o, store: self._etag(o.put(store, self.key, file)))

    def write_new(self, data: bytes) -> str:
        """Put the object unless there is one. Returns its ETag. Raises FileExistsError."""
        return self._do("put", lambda o, store: self._etag(o.put(store, self.key, data, mode="create")), len(data))

    def replace(self, data: bytes, etag: str) -> str:
        """Put the object if it is still the one that has this ETag. Returns the new ETag. Raises Changed."""
        mode = {self._etag_name: etag}
        return self._do("put", lambda o, store: self._etag(o.put(store, self.key, data, mode=mode)), len(data))

    @property
    def _etag_name(self) -> str:
        """What a store calls the state of an object. Google's takes the object's generation in a condition."""
        return "version" if self.url.startswith("gs://") else "e_tag"

    def _etag(self, meta: Any) -> str:
        return meta[self._etag_name]

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete the object. Stores don't say whether there was one."""
        self._do("delete", lambda o, store: o.delete(store, self.key))

    def _do(self, verb: str, work: Any, size: int = 0) -> Any:
        return request(self.root, self.url, verb, work, size)


Location = Path | UrlPath


def location(value: str | Path | UrlPath) -> Location:
    """A path of this machine or a URL, as the user wrote it."""
    text = str(value)
    return value if isinstance(value, UrlPath) else UrlPath(text) if is_url(text) else Path(value)


def resolved(path: Location) -> Location:
    """The path by which what lies there is known: absolute, without links. A URL is itself."""
    return path.resolve() if isinstance(path, Path) else path


def file_size(file: Location) -> int:
    """In bytes. Raises FileNotFoundError."""
    return file.stat().st_size if isinstance(file, Path) else file.size()


def is_url(text: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*://", text))
