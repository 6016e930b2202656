"""The files of a pack: its manifest, and its shards, each whole or absent."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from cache.differences import differences, differing_shards, renewed_shards
from cache.errors import ReskdError, StoreError
from cache.identity import ShardEntry, check_shard_names
from cache.json_file import parse_json, read_json, read_limited
from cache.store import side_by_side
from cache.view import View, ViewPolicy
from stages.remote.outputs import write_whole
from stages.remote.url_path import Location, file_size
from stages.shards.index import check_digest, dump, rows_path, with_digest

FORMAT = 2
PACK = "pack.json"
COLUMNS = ("key", "offset", "size", "header", "width", "height", "decoder", "error", "frames", "offsets", "crc",
           "views")  # fmt: skip


@dataclass(frozen=True)
class PackIdentity:
    """All that decides the content of a pack. A folder holds one identity only."""

    shards: tuple[ShardEntry, ...]  # of the data set
    decoder: str
    frames: Literal["crops", "all"]
    views: int | None  # number of stored views whose crops are packed; None: all frames are packed
    policy: ViewPolicy  # of these views; with all frames, of the views that `side` belongs to
    side: float  # the smallest side of a view's box, in units of the frame's shorter side; `height` suits it
    height: int  # px of a frame's shorter side; of both sides of a crop
    quality: int  # of the JPEGs, 1 to 95
    psnr: float | None  # dB, if `quality` was chosen for a PSNR

    def to_json(self) -> dict[str, Any]:
        shards = [entry.to_json() for entry in self.shards]
        return json.loads(dump(asdict(self) | {"policy": self.policy.to_json(), "shards": shards}))

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "PackIdentity":
        policy = {k: tuple(v) if isinstance(v, list) else v for k, v in values["policy"].items()}
        shards = tuple(ShardEntry(**entry) for entry in values["shards"])
        return PackIdentity(**{**values, "shards": shards, "policy": ViewPolicy(**policy)})


@dataclass(frozen=True)
class ShardFiles:
    """A committed shard: size in bytes and sha256 of its tar, and sha256 of its rows file."""

    bytes: int
    sha256: str
    rows_sha256: str


@dataclass(frozen=True)
class PackManifest:
    identity: PackIdentity
    finished: bool = False
    files: dict[str, ShardFiles] = field(default_factory=dict)  # shard -> its files; empty until the pack is finished
    quarantine: dict[str, dict[int, str]] = field(default_factory=dict)  # shard -> row -> reason


_TYPES = TypeAdapter(PackManifest)


def view_digest(view: View) -> int:
    """crc32 of a view's frames, box and flip. A crop is checked by it: another view's crop is refused."""
    parts = (view.frames.astype(np.int32), view.box.astype(np.float32), np.array([view.flip]))
    return zlib.crc32(b"".join(part.tobytes() for part in parts))


def write_pack(path: Location, manifest: PackManifest, *, new: bool = False) -> None:
    """`new`: at a URL, only if there is none. Raises FileExistsError."""
    file, values = path / PACK, asdict(manifest) | {"identity": manifest.identity.to_json()}
    data = dump(with_digest({"format": FORMAT} | values))
    if new and not isinstance(file, Path):
        file.write_new(data)
    else:
        write_whole(file, data)


def read_pack(path: Location) -> PackManifest | None:
    """The pack's manifest; None if the folder has none. Raises ReskdError for another format version and a damaged file."""
    file = path / PACK
    try:
        values = read_json(file)
        version = values["format"]
        whole_frames = version == FORMAT and values["identity"]["frames"] == "views"
        if version == FORMAT and not whole_frames:
            manifest = PackManifest(
                PackIdentity.from_json(values["identity"]),
                values["finished"],
                {shard: ShardFiles(**files) for shard, files in values["files"].items()},
                {shard: {int(r): reason for r, reason in rows.items()} for shard, rows in values["quarantine"].items()},
            )
            if _TYPES.validate_python(asdict(manifest)) != manifest:
                raise TypeError("values of other types")
            check_shard_names([entry.name for entry in manifest.identity.shards])
            check_digest(values)
            return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReskdError(f"{file}: damaged ({error!r}). Run `pack` into a new folder") from error
    if whole_frames:
        raise ReskdError(f"{path} has the whole frames of stored views, which are not read any more: run `pack` with frames: "
                         "crops (or all) into a new folder")  # fmt: skip
    raise ReskdError(f"{file}: format version {version}, this program reads {FORMAT}. Run `pack` into a new folder, or use "
                     "the version of reskd that wrote it")  # fmt: skip


CommittedShard = tuple[ShardFiles, dict[int, str]]  # and the quarantined rows: row -> reason


def read_committed_shards(path: Location, shards: Iterable[str]) -> dict[str, CommittedShard | None]:
    """shard -> its files and rows, as `read_committed_shard`. At a URL many are asked for at once."""
    names = list(shards)
    return dict(zip(names, side_by_side(path, lambda name: read_committed_shard(path, name), names), strict=True))


def read_committed_shard(path: Location, shard: str) -> CommittedShard | None:
    """None if the shard isn't committed, or its tar is missing. At a URL: one request for the rows, one for the tar's size."""
    tar = path / shard
    try:
        content = read_limited(rows_path(path, shard))
        columns = parse_json(content)
        if file_size(tar) != columns["bytes"]:
            return None
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    files = ShardFiles(columns["bytes"], columns["sha256"], hashlib.sha256(content).hexdigest())
    return files, {r: error for r, error in enumerate(columns["error"]) if error is not None}


def finish_pack(path: Location, identity: PackIdentity) -> PackManifest:
    """Write the manifest with the files of all shards, which finishes the pack."""
    shards = read_committed_shards(path, (entry.name for entry in identity.shards))
    if missing := [name for name, shard in shards.items() if shard is None]:
        raise ReskdError(f"{path / missing[0]}: missing, or not as it was packed. Run `pack` again")
    files, quarantine = ({name: shard[i] for name, shard in shards.items() if shard[i]} for i in (0, 1))
    manifest = PackManifest(identity, True, files, quarantine)
    if read_pack(path) != manifest:
        write_pack(path, manifest)
    return manifest


def pack_differences(stored: PackIdentity, wanted: PackIdentity) -> list[str]:
    """One line for each field in which two identities differ, with both values; empty if they are equal."""
    stored_fields, wanted_fields = ({**asdict(identity), "shards": None} for identity in (stored, wanted))
    renewed = {entry.name: entry for entry in renewed_shards(stored.shards, wanted.shards)}
    shards = [renewed.get(entry.name, entry) for entry in stored.shards]
    lines = differing_shards(shards, wanted.shards, ("the pack", "this run"))
    return lines + differences(stored_fields, wanted_fields, ("the pack has", "this run wants"))
