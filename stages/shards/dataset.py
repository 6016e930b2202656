"""The data set on disk: WebDataset tar shards and an index of their rows."""

import copy
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.errors import ReskdError, StoreError
from cache.identity import ShardEntry, check_shard_names
from cache.json_file import parse_json, read_limited
from cache.lru import LRU
from stages.remote.url_path import Location, UrlPath, location
from stages.shards.index import INDEX, read_index, rows_path
from stages.shards.index_types import check_rows, short_reason
from stages.shards.local_blocks import BlockPart, LocalBlocks, block_span
from stages.shards.tar_file import FilePart, RemoteTar, TarFile, open_tar
from stages.shards.tar_scan import HEADER

OPEN_SHARDS = 256  # tars kept open, and shards whose rows stay in memory: some 100 MB at 1,000 rows a shard


class ChangedVideo(ReskdError):
    """The bytes of one video aren't those that the index names; the rest of its tar may be whole."""


@dataclass(frozen=True, slots=True)
class Row:
    """One clip of a shard. `decoder` counts the frames; width and height are upright, in pixels."""

    key: str
    ext: str  # of the video, in lower case
    offset: int  # of the video in the tar, bytes
    size: int  # of the video, bytes
    sha256: str  # of the video
    frames: int
    width: int
    height: int
    labels: tuple[int, ...]  # positions in the data set's classes; empty if unlabelled
    decoder: str
    start: int  # number of the clip's first frame in its video; views count from it; not 0 only in a longer video's segment
    error: str | None  # why the clip is quarantined; then frames, width and height are 0

    @property
    def aspect(self) -> float:
        return self.width / self.height


class Dataset:
    """An indexed data set. To open it reads one file. It is small when pickled.

    Each process loads rows and opens tars at their first use. Threads and forked or spawned workers may use it.
    """

    def __init__(self, path: Location, index: Mapping[str, Any]):
        self.path = path
        self.base: Location = self.path / index["base"]  # the folder of the tars
        self.classes: tuple[str, ...] = tuple(index["classes"])
        self.decoder: str = index["decoder"]
        self.rules: int = index.get("rules", 1)  # by which the rows were made or checked last
        self.check: str = index.get("check", "quick")  # of the videos: "quick" or "full"
        # Shard -> row -> the number of the rules that changed the row's frames.
        self.changed: dict[str, dict[int, int]] = {
            shard: {int(row): rules for row, rules in rows.items()} for shard, rows in index.get("changed", {}).items()
        }
        entries = [(ShardEntry(**{k: v for k, v in e.items() if k != "rows_sha256"}), e["rows_sha256"])
                   for e in index["shards"]]  # fmt: skip
        self.shards: tuple[ShardEntry, ...] = tuple(entry for entry, _ in entries)
        self.quarantine: dict[str, dict[int, str]] = {
            shard: {int(row): reason for row, reason in rows.items()} for shard, rows in index["quarantine"].items()
        }
        check_shard_names([entry.name for entry in self.shards])
        self._entries = {entry.name: (entry, digest) for entry, digest in entries}
        self._rows, self._tars = LRU(OPEN_SHARDS), LRU(OPEN_SHARDS)
        self._names: dict[str, str] = {}  # see `content_name`
        self.local: LocalBlocks | None = None  # where blocks of a data set in a store are read

    def entry(self, shard: str) -> ShardEntry:
        """The index's entry of a shard, by its name."""
        return self._entry(shard)[0]

    def rows(self, shard: str) -> tuple[Row, ...]:
        """All rows of a shard in tar order, quarantined ones too. Raises ReskdError if they differ from the index."""
        return self._rows.get(shard, lambda: self._load_rows(shard))[0]

    def usable_rows(self) -> list[np.ndarray]:
        """For each shard the numbers of the rows that aren't quarantined, [n] int64. Reads no file."""
        return [np.delete(np.arange(e.clips), list(self.quarantine.get(e.name, ()))) for e in self.shards]

    def with_quarantine(self, quarantine: Mapping[str, Mapping[int, str]]) -> "Dataset":
        """The same data set with these rows added to its quarantine. `quarantine`: shard -> row -> reason."""
        copied = copy.copy(self)
        shards = [*self.quarantine, *(shard for shard in quarantine if shard not in self.quarantine)]
        copied.quarantine = {s: {**quarantine.get(s, {}), **self.quarantine.get(s, {})} for s in shards}
        return copied

    def with_local(self, local: LocalBlocks) -> "Dataset":
        """The same data set, which is read by blocks that lie in a local folder."""
        copied = copy.copy(self)
        copied.local = local
        copied._rows = LRU(OPEN_SHARDS)  # so that rows that are read already come into the folder, too
        return copied

    def without_local(self) -> "Dataset":
        """The same data set, which is read where it is."""
        copied = copy.copy(self)
        copied.local = None
        return copied

    def content_name(self, shard: str) -> str:
        """A name that only this content of a shard has, whatever lies at the tar's place later."""
        if shard not in self._names:
            entry, digest = self._entry(shard)
            said = f"{self.base}/{shard} {entry.bytes} {digest}"
            self._names[shard] = hashlib.sha256(said.encode(errors="replace")).hexdigest()[:32]
        return self._names[shard]

    def rows_digest(self, shard: str) -> str:
        """sha256 of the shard's file of rows."""
        return self._entry(shard)[1]

    def read(self, shard: str, row: int) -> bytes:
        """The encoded video of row number `row`, read at its offset. Raises ReskdError if the tar differs from the index."""
        if self.local is not None:
            return self.local.read(self, shard, row)
        return self.read_from(self._tars.get(shard, lambda: self.open_tar(shard)), shard, row)

    def fetch_block(self, shard: str, block: int) -> bytes:
        """The bytes of `block_span`, by one request. Raises StoreError, and ReskdError for a tar of another size, or none."""
        start, stop = block_span(self, shard, block)
        tar = self.base / shard
        try:
            content = tar.read_range(start, stop)
        except OSError as error:
            raise self._missing_tar(shard, error) from error
        except StoreError:
            self._check_size(shard, tar.size())  # a store refuses a range behind the end of a tar that was replaced
            raise
        if len(content) != stop - start:
            self._check_size(shard, tar.size())
            raise StoreError(f"{tar}: {len(content)} bytes came, {stop - start} were asked for: run the command again")
        return content

    def read_from(self, tar: TarFile | RemoteTar | FilePart | BlockPart, shard: str, row: int) -> bytes:
        """As `read`, from a tar that is open, or from a part of it."""
        rows, headers = self._rows.get(shard, lambda: self._load_rows(shard))
        clip = rows[row]
        if zlib.crc32(tar.read(HEADER, clip.offset - HEADER)) != headers[row]:
            raise self.changed_tar(shard, f"row {row}: another member lies where {clip.key}.{clip.ext} was")
        data = tar.read(clip.size, clip.offset)
        if len(data) != clip.size:
            raise self.changed_tar(shard, f"row {row}: cut inside the data of {clip.key}.{clip.ext}")
        if hashlib.sha256(data).hexdigest() != clip.sha256:  # a flipped bit may decode, to another picture
            error = self.changed_tar(shard, f"row {row}, {clip.key}.{clip.ext}: {len(data)} bytes of other content")
            raise ChangedVideo(str(error))
        return data

    def check_files(self) -> None:
        """Raises ReskdError, which names the first bad tar, unless all tars exist and have the sizes in the index.

        Tars in a store are asked for their sizes when they are opened: a request for each would take long here.
        """
        if isinstance(self.base, UrlPath):
            return
        for entry in self.shards:
            try:
                self._check_size(entry.name, os.stat(self.base / entry.name).st_size)
            except OSError as error:
                raise self._missing_tar(entry.name, error) from error

    def _entry(self, shard: str) -> tuple[ShardEntry, str]:
        if shard not in self._entries:
            raise ReskdError(f"{self.path / INDEX}: no shard {shard!r} in it. It lists {len(self.shards)} shards")
        return self._entries[shard]

    def _load_rows(self, shard: str) -> tuple[tuple[Row, ...], list[int]]:
        """The rows of a shard, and the crc32 of each row's tar header."""
        digest, path = self._entry(shard)[1], rows_path(self.path, shard)
        try:
            data = (self.local and self.local.rows(digest)) or read_limited(path)
        except StoreError:
            raise
        except (OSError, ValueError) as error:
            raise ReskdError(f"{path}: can't be read ({error}). Run `prepare` into a new folder") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise ReskdError(
                f"{path}: not the rows that {self.path / INDEX} was made with. Run `prepare` into a new folder"
            )
        if self.local is not None and not self.local.rows_file(digest).exists():
            self.local.write(self.local.rows_file(digest), data)
        try:
            columns = parse_json(data)
            check_rows(columns, self.entry(shard))
        except (ValueError, TypeError) as error:
            raise ReskdError(f"{path}: damaged ({short_reason(error)}). Run `prepare` into a new folder") from error
        columns["labels"] = [tuple(labels) for labels in columns["labels"]]
        rows = tuple(Row(*values) for values in zip(*(columns[name] for name in Row.__slots__), strict=True))
        return rows, columns["header"]

    def open_tar(self, shard: str) -> TarFile | RemoteTar:
        """Raises ReskdError if it is missing or has another size than the index says."""
        try:
            tar = open_tar(self.base / shard)
        except OSError as error:
            raise self._missing_tar(shard, error) from error
        self._check_size(shard, tar.size)
        return tar

    def _check_size(self, shard: str, size: int) -> None:
        if size != self.entry(shard).bytes:
            raise self.changed_tar(shard, f"{size} bytes, the index has {self.entry(shard).bytes}")

    def changed_tar(self, shard: str, difference: str) -> ReskdError:
        """An error that says how a tar differs from the index."""
        return ReskdError(f"{self.base / shard}: {difference}. The tar is cut, damaged, or was changed after it was indexed: "
                          "put the indexed tar back, or run `prepare` into a new folder")  # fmt: skip

    def _missing_tar(self, shard: str, error: OSError) -> ReskdError:
        return ReskdError(f"{self.base / shard}: missing shard ({error.strerror}), {self.path / INDEX} lists it. "
                          "Put the tar back, or run `prepare` into a new folder")  # fmt: skip


def open_dataset(path: Location | str) -> Dataset:
    """The data set in a folder or at a URL. Raises ReskdError if the index is missing, damaged, or of another format version."""
    path = location(path)
    index = read_index(path)
    try:
        return Dataset(path, index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReskdError(f"{path / INDEX}: damaged ({error!r}). Run `prepare` into a new folder") from error
