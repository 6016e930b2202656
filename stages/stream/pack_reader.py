"""A pack: for each tar shard one of the same name whose clips are low-resolution JPEGs, read by row and frame.

<pack>/pack.json             what it is made of, shards with digests, quarantined rows; `finished` once all are there
<pack>/<shard>               KEY.mjpeg: a clip's JPEGs back to back (a Motion-JPEG stream), KEY.json: what they are
<pack>/<shard>.rows.json     of each tar: a list per property of its rows, in tar order; written last, the commit
"""

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import ReskdError
from cache.lru import LRU
from cache.view import View
from stages.shards.dataset import OPEN_SHARDS, Dataset, Row
from stages.shards.index import rows_path
from stages.shards.tar_file import TarFile
from stages.shards.tar_scan import HEADER
from stages.stream.pack_files import PACK, PackManifest, read_pack, view_digest
from stages.video import jpeg


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One clip of a pack's shard; `frames`, `offsets` and `crc` are of its JPEGs, in the order of the stream: sorted by
    frame, or view after view if crops."""

    key: str
    offset: int  # of the stream in the tar, bytes
    size: int
    header: int  # crc32 of the tar header before it
    width: int
    height: int
    decoder: str
    error: str | None
    frames: np.ndarray  # [n] int32, from the clip's start
    offsets: np.ndarray  # [n] int64, in the stream
    crc: np.ndarray  # [n] uint32
    views: list[int]  # `view_digest` of each, if crops


class Pack:
    """A finished pack. Cheap to open (one file) and to pickle; rows are loaded and tars opened in the process that asks,
    by threads and by forked or spawned workers alike.
    """

    def __init__(self, path: Path, manifest: PackManifest):
        self.path, self.manifest = Path(path), manifest
        self._rows, self._tars = LRU(OPEN_SHARDS), LRU(OPEN_SHARDS)

    def decode(self, data: Dataset, shard: str, r: int, frames: np.ndarray) -> tuple[np.ndarray, str]:
        """Frames of a row, uint8 [n,h,w,3], and the decoder that served when they were packed: `join.decode_of`, but
        from the pack. `frames`: [n] integers as the source's video counts them.

        Raises ReskdError for a frame that the pack hasn't, and for whatever isn't as it was packed.
        """
        packed, tar, asked = self._packed(data, shard, r)
        wanted, inverse = np.unique(np.asarray(frames, np.int64) - asked.start, return_inverse=True)
        places = np.minimum(np.searchsorted(packed.frames, wanted), len(packed.frames) - 1)
        absent = wanted if not len(packed.frames) else wanted[packed.frames[places] != wanted]
        if len(absent):
            raise self._absent(shard, packed, f"frame {absent[0]}")
        return np.stack([self._picture(shard, tar, packed, place) for place in places])[inverse], packed.decoder

    def crop(self, data: Dataset, shard: str, r: int, v: int, view: View) -> tuple[np.ndarray, str]:
        """What stored view number `v` of a row shows, uint8 [T,3,S,S] at the pack's size, and the decoder that served; of a
        pack of crops. `view` is that view, by the cache.

        Raises ReskdError for a view that the pack hasn't, or has otherwise, and for whatever isn't as it was packed.
        """
        packed, tar, _ = self._packed(data, shard, r)
        if v >= len(packed.views):
            raise self._absent(shard, packed, f"view {v}")
        if packed.views[v] != view_digest(view):
            raise ReskdError(f"{self.path}, shard {shard}, clip {packed.key!r}: its crop of view {v} is of another view than "
                             "the cache has: run `pack` with this cache into a new folder")  # fmt: skip
        each = len(packed.frames) // len(packed.views)
        pictures = [self._picture(shard, tar, packed, place) for place in range(v * each, (v + 1) * each)]
        return np.stack(pictures).transpose(0, 3, 1, 2), packed.decoder

    def _packed(self, data: Dataset, shard: str, r: int) -> tuple[PackedRow, TarFile, Row]:
        """A row of the pack, its tar, and the data set's row, which it is of."""
        packed, asked = self._row(shard, r), data.rows(shard)[r]
        tar = self._tars.get(shard, lambda: self._open_tar(shard))
        if packed.key != asked.key:
            raise ReskdError(f"{self.path}, shard {shard} row {r}: the data set has the clip {asked.key!r}, the pack "
                             f"{packed.key!r}: run `pack` into a new folder")  # fmt: skip
        if zlib.crc32(tar.read(HEADER, packed.offset - HEADER)) != packed.header:
            raise self._stale(shard, f"row {r}: another member lies where {packed.key}.mjpeg was")
        return packed, tar, asked

    def check_files(self) -> None:
        """Raises ReskdError, naming the first offender, unless each tar is there with its size, and its rows."""
        for shard in self.manifest.files:
            try:
                self._check_size(shard, os.stat(self.path / shard).st_size)
                os.stat(rows_path(self.path, shard))
            except OSError as error:
                raise self._missing(error) from error

    def _row(self, shard: str, r: int) -> PackedRow:
        return self._rows.get(shard, lambda: self._load_rows(shard))[r]

    def _load_rows(self, shard: str) -> tuple[PackedRow, ...]:
        if shard not in self.manifest.files:
            raise ReskdError(
                f"{self.path / PACK}: no shard {shard!r} in it. It lists {len(self.manifest.files)} shards"
            )
        path = rows_path(self.path, shard)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise self._missing(error) from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[shard].rows_sha256:
            raise self._stale(shard, f"{path.name} beside it is not the one of {PACK}")
        columns = json.loads(content)
        for name, kind in (("frames", np.int32), ("offsets", np.int64), ("crc", np.uint32)):
            columns[name] = [np.array(values, kind) for values in columns[name]]
        return tuple(PackedRow(*v) for v in zip(*(columns[name] for name in PackedRow.__slots__), strict=True))

    def _open_tar(self, shard: str) -> TarFile:
        try:
            tar = TarFile(self.path / shard)
        except OSError as error:
            raise self._missing(error) from error
        self._check_size(shard, tar.size)
        return tar

    def _check_size(self, shard: str, size: int) -> None:
        if size != self.manifest.files[shard].bytes:
            raise self._stale(shard, f"{size} bytes, {PACK} has {self.manifest.files[shard].bytes}")

    def _picture(self, shard: str, tar: TarFile, row: PackedRow, place: int) -> np.ndarray:
        start = int(row.offsets[place])
        end = int(row.offsets[place + 1]) if place + 1 < len(row.offsets) else row.size
        content = tar.read(end - start, row.offset + start)
        what = f"frame {row.frames[place]} of {row.key}.mjpeg"
        if zlib.crc32(content) != row.crc[place]:
            raise self._stale(shard, f"{what}: {len(content)} bytes of other content")
        try:
            return jpeg.decode(content)
        except OSError as error:
            raise self._stale(shard, f"{what}: {error}") from error

    def _absent(self, shard: str, row: PackedRow, what: str) -> ReskdError:
        made, has = self.manifest.identity, f"it has {len(row.frames)} frames"
        if row.error is not None:
            has = f"the clip is in its quarantine: {row.error}"
        elif made.frames != "all":
            has += f", those of {made.views} stored views"
        return ReskdError(f"{self.path}, shard {shard}, clip {row.key!r}: {what} is not in the pack ({has}): use "
                          "the views that it was packed for, or run `pack` with frames: all into a new folder")  # fmt: skip

    def _stale(self, shard: str, what: str) -> ReskdError:
        return ReskdError(f"{self.path / shard}: {what}. The tar is cut, damaged, or was changed after it was packed: delete "
                          "it and run `pack` again, which makes it anew")  # fmt: skip

    def _missing(self, error: OSError) -> ReskdError:
        return ReskdError(f"{error.filename}: missing ({error.strerror}), {self.path / PACK} lists it. Put it back, or run "
                          "`pack` again, which makes it anew")  # fmt: skip


def open_pack(path: Path) -> Pack:
    """Raises ReskdError where there is no pack, one of another format version, or one that isn't finished."""
    path = Path(path)
    manifest = read_pack(path)
    if manifest is None:
        raise ReskdError(f"{path / PACK}: no pack here. `pack` makes one of a data set")
    if not manifest.finished:
        raise ReskdError(f"{path}: the pack is not finished: run `pack` again with the config that made it")
    return Pack(path, manifest)
