"""Reading a pack by row and frame. A pack has a tar for each shard, of the same name, with low-resolution JPEGs of the clips.

<pack>/pack.json             identity, shards with digests, quarantined rows; `finished` once all shards are packed
<pack>/<shard>               KEY.mjpeg: a clip's JPEGs one after the other (a Motion-JPEG stream); KEY.json: their frames
<pack>/<shard>.rows.json     for each tar, one list per property of its rows, in tar order; written last: the commit
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import ReskdError
from cache.json_file import parse_json, read_limited
from cache.lru import LRU
from cache.view import View
from stages.remote.url_path import Location, UrlPath, location
from stages.shards.dataset import OPEN_SHARDS, Dataset, Row
from stages.shards.index import rows_path
from stages.shards.tar_file import FilePart, RemoteTar, TarFile, open_tar
from stages.shards.tar_scan import HEADER
from stages.stream.pack_files import PACK, PackManifest, read_pack, view_digest
from stages.video import jpeg


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One clip of a pack's shard. `frames`, `offsets` and `crc` have one element a JPEG, in the order of the stream.

    Frames are sorted; crops lie view after view."""

    key: str
    offset: int  # of the stream in the tar, bytes
    size: int
    header: int  # crc32 of the tar header before it
    width: int  # of a picture, px
    height: int
    decoder: str
    error: str | None  # why the clip is quarantined
    frames: np.ndarray  # [n] int32, from the clip's start
    offsets: np.ndarray  # [n] int64, in the stream, bytes
    crc: np.ndarray  # [n] uint32, crc32 of the JPEG
    views: list[int]  # `view_digest` of each packed view; empty unless the pack has crops


class Pack:
    """A finished pack. To open it reads one file. It is small when pickled.

    Each process loads rows and opens tars at their first use. Threads and forked or spawned workers may use it. From a pack
    at a URL, the pictures of a clip are read by one request, from the first that is wanted to the last.
    """

    def __init__(self, path: Location, manifest: PackManifest):
        self.path, self.manifest = path, manifest
        self._rows, self._tars = LRU(OPEN_SHARDS), LRU(OPEN_SHARDS)

    def decode(self, data: Dataset, shard: str, r: int, frames: np.ndarray) -> tuple[np.ndarray, str]:
        """Frames of row number `r`, uint8 [n,h,w,3], and the decoder that served them for the pack.

        Used in place of `clips.decode_row`. `frames`: [n] integers, numbers in the row's video. Raises ReskdError for a
        frame that is not in the pack, and for a tar that was changed.
        """
        packed, tar, row = self._check_and_open(data, shard, r)
        wanted, inverse = np.unique(np.asarray(frames, np.int64) - row.start, return_inverse=True)
        places = np.minimum(np.searchsorted(packed.frames, wanted), len(packed.frames) - 1)
        absent = wanted if not len(packed.frames) else wanted[packed.frames[places] != wanted]
        if len(absent):
            raise self._not_in_pack(shard, packed, f"frame {absent[0]}")
        return np.stack(self._pictures(shard, tar, packed, places))[inverse], packed.decoder

    def crop(self, data: Dataset, shard: str, r: int, v: int, view: View) -> tuple[np.ndarray, str]:
        """The pictures of stored view number `v` of row number `r`, and the decoder that served their frames for the pack.

        The pictures are uint8 [T,3,S,S] at the pack's size. The pack is one of crops. `view`: the cache's view `v`. Raises
        ReskdError for a view that is not in the pack or differs from `view`, and for a tar that was changed.
        """
        packed, tar, _ = self._check_and_open(data, shard, r)
        if v >= len(packed.views):
            raise self._not_in_pack(shard, packed, f"view {v}")
        if packed.views[v] != view_digest(view):
            raise ReskdError(f"{self.path}, shard {shard}, clip {packed.key!r}: its crop of view {v} is of another view than "
                             "the cache has. Run `pack` with this cache into a new folder")  # fmt: skip
        time = len(packed.frames) // len(packed.views)
        pictures = self._pictures(shard, tar, packed, range(v * time, (v + 1) * time))
        return np.stack(pictures).transpose(0, 3, 1, 2), packed.decoder

    def _check_and_open(self, data: Dataset, shard: str, r: int) -> tuple[PackedRow, TarFile | RemoteTar, Row]:
        """Row number `r` of the pack, its tar, and the data set's row. Raises ReskdError if key or tar header differ.

        The header at a URL would be a request more: each picture is compared with its crc32 anyway.
        """
        packed, row = self._row(shard, r), data.rows(shard)[r]
        tar = self._tars.get(shard, lambda: self._open_tar(shard))
        if packed.key != row.key:
            raise ReskdError(f"{self.path}, shard {shard} row {r}: the data set has the clip {row.key!r}, the pack has "
                             f"{packed.key!r}. Run `pack` into a new folder")  # fmt: skip
        if isinstance(tar, TarFile) and zlib.crc32(tar.read(HEADER, packed.offset - HEADER)) != packed.header:
            raise self._changed_tar(shard, f"row {r}: another member lies where {packed.key}.mjpeg was")
        return packed, tar, row

    def check_files(self) -> None:
        """Raises ReskdError, which names the first bad file, unless all tars, with their sizes, and rows files exist.

        Files at a URL are looked at when they are opened: a request for each would take long here.
        """
        if isinstance(self.path, UrlPath):
            return
        for shard in self.manifest.files:
            try:
                self._check_size(shard, os.stat(self.path / shard).st_size)
                os.stat(rows_path(self.path, shard))
            except OSError as error:
                raise self._missing_file(error) from error

    def _row(self, shard: str, r: int) -> PackedRow:
        return self._rows.get(shard, lambda: self._load_rows(shard))[r]

    def _load_rows(self, shard: str) -> tuple[PackedRow, ...]:
        if shard not in self.manifest.files:
            raise ReskdError(
                f"{self.path / PACK}: no shard {shard!r} in it. It lists {len(self.manifest.files)} shards"
            )
        path = rows_path(self.path, shard)
        try:
            content = read_limited(path)
        except OSError as error:
            raise self._missing_file(error) from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[shard].rows_sha256:
            raise self._changed_tar(shard, f"{path.name} beside it is not the one of {PACK}")
        try:
            columns = parse_json(content)
            for name, kind in (("frames", np.int32), ("offsets", np.int64), ("crc", np.uint32)):
                columns[name] = [np.array(values, kind) for values in columns[name]]
            rows = tuple(PackedRow(*v) for v in zip(*(columns[name] for name in PackedRow.__slots__), strict=True))
            _check_rows(rows, self.manifest.files[shard].bytes)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise self._changed_tar(shard, f"{path.name} beside it is damaged ({error!r:.200})") from error
        return rows

    def _open_tar(self, shard: str) -> TarFile | RemoteTar:
        try:
            tar = open_tar(self.path / shard)
        except OSError as error:
            raise self._missing_file(error) from error
        self._check_size(shard, tar.size)
        return tar

    def _check_size(self, shard: str, size: int) -> None:
        if size != self.manifest.files[shard].bytes:
            raise self._changed_tar(shard, f"{size} bytes, {PACK} has {self.manifest.files[shard].bytes}")

    def _pictures(
        self, shard: str, tar: TarFile | RemoteTar, row: PackedRow, places: Sequence[int]
    ) -> list[np.ndarray]:
        """The pictures at these places of a row, which rise."""
        if isinstance(tar, RemoteTar) and len(places):
            start, end = _bytes_of(row, places[0])[0], _bytes_of(row, places[-1])[1]
            tar = FilePart(tar.read(end - start, row.offset + start), row.offset + start)
        return [self._picture(shard, tar, row, place) for place in places]

    def _picture(self, shard: str, tar: TarFile | FilePart, row: PackedRow, place: int) -> np.ndarray:
        start, end = _bytes_of(row, place)
        content = tar.read(end - start, row.offset + start)
        name = f"frame {row.frames[place]} of {row.key}.mjpeg"
        if zlib.crc32(content) != row.crc[place]:
            raise self._changed_tar(shard, f"{name}: {len(content)} bytes of other content")
        try:
            return jpeg.decode(content)
        except OSError as error:
            raise self._changed_tar(shard, f"{name}: {error}") from error

    def _not_in_pack(self, shard: str, row: PackedRow, what: str) -> ReskdError:
        identity, content = self.manifest.identity, f"it has {len(row.frames)} frames"
        if row.error is not None:
            content = f"the clip is in its quarantine: {row.error}"
        elif identity.frames != "all":
            content += f", those of {identity.views} stored views"
        return ReskdError(f"{self.path}, shard {shard}, clip {row.key!r}: {what} is not in the pack ({content}). Use "
                          "the views that the pack was made for, or run `pack` with frames: all into a new folder")  # fmt: skip

    def _changed_tar(self, shard: str, difference: str) -> ReskdError:
        return ReskdError(f"{self.path / shard}: {difference}. The tar is cut, damaged, or was changed after packing: delete "
                          "it and run `pack` again, which packs the shard again")  # fmt: skip

    def _missing_file(self, error: OSError) -> ReskdError:
        return ReskdError(f"{error.filename}: missing ({error.strerror}), {self.path / PACK} lists it. Put the file back, or "
                          "run `pack` again, which packs the shard again")  # fmt: skip


def _bytes_of(row: PackedRow, place: int) -> tuple[int, int]:
    """Where in the row's stream the JPEG at `place` begins and ends."""
    return int(row.offsets[place]), int(row.offsets[place + 1]) if place + 1 < len(row.offsets) else row.size


def _check_rows(rows: Sequence[PackedRow], tar_bytes: int) -> None:
    """Raises ValueError or TypeError unless the JPEGs of all rows lie inside the tar, one after the other."""
    for row in rows:
        numbers = (row.offset, row.size, row.header, row.width, row.height, *row.views)
        if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(row.key, str):
            raise TypeError(f"clip {row.key!r} has other types")
        ends = np.append(row.offsets, row.size)
        if row.error is None and not HEADER <= row.offset <= row.offset + row.size <= tar_bytes:
            raise ValueError(f"clip {row.key!r} would lie outside the tar")
        if not len(row.frames) == len(row.offsets) == len(row.crc) or (ends < 0).any() or (np.diff(ends) < 0).any():
            raise ValueError(f"the frames of clip {row.key!r} would lie outside of it")
        if row.views and len(row.frames) % len(row.views):
            raise ValueError(f"clip {row.key!r} has {len(row.frames)} frames of {len(row.views)} views")


def open_pack(path: Location | str) -> Pack:
    """Raises ReskdError if the folder has no pack, or the pack has another format version or isn't finished."""
    path = location(path)
    manifest = read_pack(path)
    if manifest is None:
        raise ReskdError(f"{path / PACK}: no pack in this folder. `pack` makes one from a data set")
    if not manifest.finished:
        raise ReskdError(f"{path}: the pack is not finished: run `pack` again with the same config")
    return Pack(path, manifest)
