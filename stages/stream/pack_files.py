"""The files of a pack: what it is, and shards that are there whole or not at all."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache.differences import differences, differing_shards
from cache.errors import ReskdError
from cache.identity import ShardEntry
from cache.store import write_atomically
from cache.view import View, ViewPolicy
from stages.shards.index import dump, rows_path

FORMAT = 2
PACK = "pack.json"
COLUMNS = ("key", "offset", "size", "header", "width", "height", "decoder", "error", "frames", "offsets", "crc",
           "views")  # fmt: skip


@dataclass(frozen=True)
class PackIdentity:
    """All that decides the content of a pack; no two of these are mixed in one folder."""

    shards: tuple[ShardEntry, ...]  # of the source
    decoder: str
    frames: Literal["views", "all", "crops"]
    views: int | None  # stored ones whose frames, or crops, are there; None: all frames are
    policy: ViewPolicy  # of these views, or what `side` is of
    side: float  # the smallest of a view's box, in units of the shorter side: what `height` serves
    height: int  # px of the shorter side; of both, if crops
    quality: int  # of the JPEGs
    psnr: float | None  # dB that `quality` was chosen for

    def to_json(self) -> dict[str, Any]:
        return json.loads(dump(asdict(self) | {"policy": self.policy.to_json()}))

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "PackIdentity":
        policy = {k: tuple(v) if isinstance(v, list) else v for k, v in values["policy"].items()}
        shards = tuple(ShardEntry(**entry) for entry in values["shards"])
        return PackIdentity(**{**values, "shards": shards, "policy": ViewPolicy(**policy)})


@dataclass(frozen=True)
class ShardFiles:
    """A committed shard: its tar's bytes and sha256, and its rows file's."""

    bytes: int
    sha256: str
    rows_sha256: str


@dataclass(frozen=True)
class PackManifest:
    identity: PackIdentity
    finished: bool = False
    files: dict[str, ShardFiles] = field(default_factory=dict)  # of every shard, once finished
    quarantine: dict[str, dict[int, str]] = field(default_factory=dict)  # shard -> row -> reason


def view_digest(view: View) -> int:
    """Of all that a view is, so that a crop is never taken for that of another view."""
    parts = (view.frames.astype(np.int32), view.box.astype(np.float32), np.array([view.flip]))
    return zlib.crc32(b"".join(part.tobytes() for part in parts))


def write_pack(path: Path, manifest: PackManifest) -> None:
    values = asdict(manifest) | {"identity": manifest.identity.to_json()}
    write_atomically(path / PACK, dump({"format": FORMAT} | values))


def read_pack(path: Path) -> PackManifest | None:
    """None where there is none. Raises ReskdError for one of another format version, and for a damaged one."""
    file = path / PACK
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_bytes())
        version = values["format"]
        if version == FORMAT:
            return PackManifest(
                PackIdentity.from_json(values["identity"]),
                values["finished"],
                {shard: ShardFiles(**files) for shard, files in values["files"].items()},
                {shard: {int(r): why for r, why in rows.items()} for shard, rows in values["quarantine"].items()},
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReskdError(f"{file}: damaged ({error!r}). Run `pack` into a new folder") from error
    raise ReskdError(f"{file}: format version {version}, this program reads {FORMAT}. Run `pack` into a new folder, or use "
                     "the version of reskd that wrote it")  # fmt: skip


def committed(path: Path, shard: str) -> tuple[ShardFiles, dict[int, str]] | None:
    """A shard's files and its quarantined rows; None where it isn't committed, or its tar was taken away."""
    rows, tar = rows_path(path, shard), path / shard
    if not rows.exists() or not tar.exists():
        return None
    content = rows.read_bytes()
    columns = json.loads(content)
    if tar.stat().st_size != columns["bytes"]:
        return None
    files = ShardFiles(columns["bytes"], columns["sha256"], hashlib.sha256(content).hexdigest())
    return files, {r: error for r, error in enumerate(columns["error"]) if error is not None}


def finish(path: Path, identity: PackIdentity) -> PackManifest:
    """Write what all shards are; with it the pack is finished."""
    found = {entry.name: committed(path, entry.name) for entry in identity.shards}
    files, quarantine = ({s: both[i] for s, both in found.items() if both[i]} for i in (0, 1))
    manifest = PackManifest(identity, True, files, quarantine)
    write_pack(path, manifest)
    return manifest


def differing_packs(stored: PackIdentity, wanted: PackIdentity) -> list[str]:
    """One line for each field in which two identities differ, naming both sides; empty where they agree."""
    left, right = ({**asdict(made), "shards": None} for made in (stored, wanted))
    lines = differing_shards(stored.shards, wanted.shards, ("the pack", "this run"))
    return lines + differences(left, right, ("the pack has", "this run wants"))
