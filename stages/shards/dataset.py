"""The data set on disk: WebDataset tar shards and an index of their rows. The only file with webdataset."""

import copy
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cache.errors import ReskdError
from cache.identity import ShardEntry, check_shard_names
from cache.lru import LRU
from cache.store import move_into_place
from stages.shards.index import INDEX, read_index, rows_path
from stages.shards.tar_file import TarFile
from stages.shards.tar_scan import HEADER, VIDEO_EXTENSIONS, Sample, scan_tar

# WebDataset runs code from data by default (`pipe:` URLs, GOPEN_REWRITE). Set in the environment, so that spawned
# workers have it too, before the import, which waits until a tar is written or streamed: it brings torch along.
os.environ["WDS_SECURE"] = "1"

OPEN_SHARDS = 256  # tars that are open, and shards whose rows are in memory: at 1,000 rows a shard some 100 MB of rows


@dataclass(frozen=True, slots=True)
class Row:
    """One clip of a shard. Frames as `decoder` counts them; width and height in pixels, upright."""

    key: str
    ext: str  # of the video, in lower case
    offset: int  # of its bytes in the tar
    size: int
    sha256: str
    frames: int
    width: int
    height: int
    labels: tuple[int, ...]  # positions in the data set's classes; empty where unlabelled
    decoder: str
    start: int  # first frame of the clip in its video, from which views count; 0 but for a segment of a longer video
    error: str | None  # why the clip is quarantined; frames, width and height are 0 then

    @property
    def aspect(self) -> float:
        return self.width / self.height


class Dataset:
    """An indexed data set. Cheap to open (one file, whatever the number of shards) and to pickle; rows are loaded and
    tars opened when first asked for, in the process that asks, by threads and by forked or spawned workers alike.
    """

    def __init__(self, path: Path, index: Mapping[str, Any]):
        self.path = Path(path)
        self.base: Path = self.path / index["base"]  # the folder of the tars
        self.classes: tuple[str, ...] = tuple(index["classes"])
        self.decoder: str = index["decoder"]
        entries = [(ShardEntry(**{k: v for k, v in e.items() if k != "rows_sha256"}), e["rows_sha256"])
                   for e in index["shards"]]  # fmt: skip
        self.shards: tuple[ShardEntry, ...] = tuple(entry for entry, _ in entries)
        self.quarantine: dict[str, dict[int, str]] = {
            shard: {int(row): reason for row, reason in rows.items()} for shard, rows in index["quarantine"].items()
        }
        check_shard_names([entry.name for entry in self.shards])
        self._entries = {entry.name: (entry, digest) for entry, digest in entries}
        self._rows, self._tars = LRU(OPEN_SHARDS), LRU(OPEN_SHARDS)

    def entry(self, shard: str) -> ShardEntry:
        """The index's entry of a shard, by its name."""
        return self._entry(shard)[0]

    def rows(self, shard: str) -> tuple[Row, ...]:
        """All rows of a shard in tar order, quarantined ones too. Raises ReskdError where they aren't as indexed."""
        return self._rows.get(shard, lambda: self._load_rows(shard))[0]

    def usable_rows(self) -> list[np.ndarray]:
        """For each shard the numbers of the rows that aren't quarantined, [n] int64; reads nothing."""
        return [np.delete(np.arange(e.clips), list(self.quarantine.get(e.name, ()))) for e in self.shards]

    def leaving_out(self, quarantine: Mapping[str, Mapping[int, str]]) -> "Dataset":
        """The same data set with further rows in its quarantine."""
        other = copy.copy(self)
        shards = [*self.quarantine, *(shard for shard in quarantine if shard not in self.quarantine)]
        other.quarantine = {s: {**quarantine.get(s, {}), **self.quarantine.get(s, {})} for s in shards}
        return other

    def read(self, shard: str, row: int) -> bytes:
        """A row's encoded video, by its offset. Raises ReskdError where the tar isn't the indexed one any more."""
        rows, headers = self._rows.get(shard, lambda: self._load_rows(shard))
        tar = self._tars.get(shard, lambda: self._open_tar(shard))
        item = rows[row]
        if zlib.crc32(tar.read(HEADER, item.offset - HEADER)) != headers[row]:
            raise self._stale(shard, f"row {row}: another member lies where {item.key}.{item.ext} was")
        data = tar.read(item.size, item.offset)
        if len(data) != item.size:
            raise self._stale(shard, f"row {row}: cut inside the data of {item.key}.{item.ext}")
        return data

    def stream(self, shard: str, wanted: Callable[[int], bool] = lambda row: True) -> Iterator[tuple[int, Row, bytes]]:
        """A shard once in its order, by WebDataset's own pipeline: (row number, row, encoded video) of the `wanted` rows.

        That pipeline is lenient, so every sample is held against the index: its key, that none is missing or left over,
        and size and sha256 of the wanted videos. Raises ReskdError at the first difference. Quarantined rows come too.
        """
        rows, count = self.rows(shard), 0
        self._open_tar(shard)  # its size, before anything is served
        try:
            with open(self.base / shard, "rb") as file:
                for count, sample in enumerate(_samples(file), 1):
                    if count > len(rows):
                        raise self._stale(shard, f"clip {sample['__key__']!r} comes after the last of {len(rows)} rows")
                    row = rows[count - 1]
                    self._check_key(shard, count - 1, row, sample)
                    if wanted(count - 1):
                        yield count - 1, row, self._checked(shard, count - 1, row, sample)
        except (tarfile.TarError, OSError) as error:
            raise self._stale(shard, f"after {count} of {len(rows)} clips: {error.args[0]}") from error
        if count < len(rows):
            raise self._stale(shard, f"{count} clips, the index has {len(rows)}; the next is {rows[count].key!r}")

    def check_files(self) -> None:
        """Raises ReskdError, naming the first offender, unless each tar is there with the size of the index."""
        for entry in self.shards:
            try:
                self._check_size(entry.name, os.stat(self.base / entry.name).st_size)
            except OSError as error:
                raise self._missing(entry.name, error) from error

    def _entry(self, shard: str) -> tuple[ShardEntry, str]:
        if shard not in self._entries:
            raise ReskdError(f"{self.path / INDEX}: no shard {shard!r} in it. It lists {len(self.shards)} shards")
        return self._entries[shard]

    def _load_rows(self, shard: str) -> tuple[tuple[Row, ...], list[int]]:
        """The rows, and the crc32 of each one's tar header."""
        digest, path = self._entry(shard)[1], rows_path(self.path, shard)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ReskdError(f"{path}: can't be read ({error.strerror}). Run `prepare` into a new folder") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise ReskdError(
                f"{path}: not the rows that {self.path / INDEX} was made with. Run `prepare` into a new folder"
            )
        columns = json.loads(data)
        columns["labels"] = [tuple(labels) for labels in columns["labels"]]
        rows = tuple(Row(*values) for values in zip(*(columns[name] for name in Row.__slots__), strict=True))
        return rows, columns["header"]

    def _open_tar(self, shard: str) -> TarFile:
        try:
            tar = TarFile(self.base / shard)
        except OSError as error:
            raise self._missing(shard, error) from error
        self._check_size(shard, tar.size)
        return tar

    def _check_size(self, shard: str, size: int) -> None:
        if size != self.entry(shard).bytes:
            raise self._stale(shard, f"{size} bytes, the index has {self.entry(shard).bytes}")

    def _check_key(self, shard: str, number: int, row: Row, sample: Mapping[str, Any]) -> None:
        if sample["__key__"] != row.key:
            raise self._stale(shard, f"row {number}: clip {sample['__key__']!r} lies where the index has {row.key!r}")

    def _checked(self, shard: str, number: int, row: Row, sample: Mapping[str, Any]) -> bytes:
        data = sample.get(row.ext)
        if data is None or len(data) != row.size or hashlib.sha256(data).hexdigest() != row.sha256:
            found = "no such member" if data is None else f"{len(data)} bytes of other content"
            raise self._stale(shard, f"row {number}, {row.key}.{row.ext}: {found}, the index has {row.size} bytes")
        return data

    def _stale(self, shard: str, what: str) -> ReskdError:
        return ReskdError(f"{self.base / shard}: {what}. The tar is cut, damaged, or was changed after it was indexed: "
                          "put the indexed one back, or run `prepare` into a new folder")  # fmt: skip

    def _missing(self, shard: str, error: OSError) -> ReskdError:
        return ReskdError(f"{self.base / shard}: missing shard ({error.strerror}), {self.path / INDEX} lists it. "
                          "Put it back, or run `prepare` into a new folder")  # fmt: skip


def open_dataset(path: Path) -> Dataset:
    """Raises ReskdError where there is no index, or one of another format version."""
    index = read_index(Path(path))
    try:
        return Dataset(Path(path), index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReskdError(f"{Path(path) / INDEX}: damaged ({error!r}). Run `prepare` into a new folder") from error


def _samples(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """WebDataset's samples of an open tar. Opened by us: its own opener refuses local files when it is secured."""
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    shard = {"url": file.name, "stream": file}
    try:
        yield from webdataset.DataPipeline([[shard]], tar_file_expander, group_by_keys)
    except ValueError as error:  # the same member twice
        raise tarfile.ReadError(str(error.args[0])) from error


def write_shard(
    path: Path,
    temporary: Path,
    clips: Iterable[tuple[str, str, bytes, Mapping[str, Any]]],
    extensions: frozenset[str] = VIDEO_EXTENSIONS,
) -> tuple[list[Sample], int, str]:
    """Writes (key, extension, video, metadata) by WebDataset's writer; the same clips give the same bytes.

    `extensions`: those that a video may have. Written to `temporary`, synced, scanned as strictly as a foreign tar,
    renamed to `path`. Returns its samples in order, its bytes and its sha256; without any clip there is no tar, and the
    samples are empty.
    """
    import webdataset

    count = 0
    with open(temporary, "wb") as file:
        hashed = _Hashed(file)
        with webdataset.TarWriter(hashed, encoder=False, mtime=0, user="", group="") as writer:
            for count, (key, ext, video, metadata) in enumerate(clips, 1):  # noqa: B007
                writer.write({"__key__": key, ext: video, "json": json.dumps(metadata).encode()})
        file.flush()
        os.fsync(file.fileno())
    if count == 0:
        temporary.unlink()
        return [], 0, ""
    samples, size = scan_tar(temporary, extensions), temporary.stat().st_size
    assert len(samples) == count
    move_into_place(temporary, path)
    return samples, size, hashed.sha256.hexdigest()


class _Hashed:
    """A file whose sha256 grows as it is written."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)
