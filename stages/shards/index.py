"""The files of a data set's index. Each file is written whole and synced, or not at all.

<data set>/index.json             classes, decoder, shards with digests, quarantined rows; written last
<data set>/<shard>.rows.json      for each tar, one list per property of its rows, in tar order
<data set>/<base>/<shard>         the tars; base is "." if `prepare` wrote them
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import ReskdError, StoreError
from cache.identity import ShardEntry
from cache.json_file import read_json
from cache.store import write_atomically
from stages.remote.url_path import Location
from stages.shards.index_types import check_index, short_reason

FORMAT = 2
INDEX = "index.json"
# offset and size: bytes of the video in the tar; header: crc32 of the 512-byte tar header before the video; fps: 1/s;
# width, height: upright, pixels; start: the clip's first frame in its video; frames, duration (seconds): counted from
# `start`; fallback: why decord wasn't used; error: why the clip is quarantined.
COLUMNS = ("key", "ext", "offset", "size", "header", "sha256", "frames", "fps", "width", "height", "duration", "labels",
           "decoder", "start", "fallback", "error")  # fmt: skip


def rows_path(path: Location, shard: str) -> Location:
    return path / f"{shard}.rows.json"


def write_rows(path: Path, shard: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows of a shard; returns the sha256 of the rows file."""
    data = dump({name: [row[name] for row in rows] for name in COLUMNS})
    write_atomically(rows_path(path, shard), data)
    return hashlib.sha256(data).hexdigest()


def make_index(
    *,
    classes: Sequence[str],
    decoder: str,
    base: str,
    shards: Sequence[tuple[ShardEntry, str]],
    quarantine: Mapping[str, Mapping[int, str]],
    rules: int,
    check: str,
    changed: Mapping[str, Mapping[int, int]] = {},
) -> dict[str, Any]:
    """The content of index.json. `shards`: (entry, sha256 of its rows file) of each shard.

    `rules`: the number of the rules by which the rows were made or checked last. `check`: "quick" or "full".
    `changed`: shard -> row -> the number of the rules that changed the row's frames. An older index has none of the three.
    """
    entries = [entry.to_json() | {"rows_sha256": digest} for entry, digest in shards]
    index = {"format": FORMAT, "decoder": decoder, "base": base, "classes": list(classes), "shards": entries}
    index |= {"rules": rules, "check": check, "changed": {shard: dict(rows) for shard, rows in changed.items()}}
    return index | {"quarantine": {shard: dict(rows) for shard, rows in quarantine.items()}}


def write_index(path: Path, index: Mapping[str, Any]) -> None:
    """Write index.json, which finishes the data set."""
    write_atomically(path / INDEX, dump(with_digest(index)))


def read_index(path: Location) -> dict[str, Any]:
    """The content of index.json. Raises ReskdError if the file is missing, damaged, or of another format version."""
    file = path / INDEX
    try:
        index = read_json(file)
        version = index["format"]
    except StoreError:
        raise
    except OSError as error:
        raise ReskdError(f"{file}: no data set in this folder ({error.strerror}). `prepare` makes one from videos or "
                         "existing shards") from error  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ReskdError(f"{file}: not an index of a data set ({error!r}). Run `prepare` into a new folder") from error
    if version != FORMAT:
        raise ReskdError(f"{file}: format version {version}, this program reads {FORMAT}. Run `prepare` into a new "
                         "folder, or use the version of reskd that wrote it")  # fmt: skip
    try:
        check_index(index)
        check_digest(index)
    except ValueError as error:
        raise ReskdError(f"{file}: damaged ({short_reason(error)}). Run `prepare` into a new folder") from error
    return index


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines."""
    write_atomically(path, b"".join(map(dump, lines)))


def with_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON file, with their own sha256. A class's name with a flipped bit would be a name, too."""
    return {**values, "sha256": hashlib.sha256(dump(values)).hexdigest()}


def check_digest(values: Mapping[str, Any]) -> None:
    """Raises ValueError if the values of a JSON file aren't those of its sha256. Older files have none."""
    others = {name: value for name, value in values.items() if name != "sha256"}
    if "sha256" in values and values != with_digest(others):
        raise ValueError("its sha256 is not that of its values")


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
