"""What index.json and the rows files hold: types and ranges. Others may have made them, and their numbers decide what is
read and how much memory is taken. Keys that are not listed here are passed over.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache.identity import ShardEntry
from cache.manifest import MAX_CLIPS
from stages.shards.tar_scan import HEADER

Count = Annotated[int, Field(ge=0, lt=2**63)]
Small = Annotated[int, Field(ge=0, lt=2**31)]  # frames are counted in int32
RowNumber = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
Digest = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]  # empty for a file that couldn't be read


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Shard(_Strict):
    name: str
    clips: Annotated[int, Field(ge=0, le=MAX_CLIPS)]
    bytes: Count
    sha256: Digest
    keys_sha256: Digest
    rows_sha256: Digest
    rules: Annotated[int, Field(ge=1, lt=2**31)] = 1


class _Index(_Strict):
    decoder: str
    base: str
    classes: list[str]
    shards: list[_Shard]
    quarantine: dict[str, dict[RowNumber, str]]
    rules: Annotated[int, Field(ge=1, lt=2**31)] = 1
    check: Literal["quick", "full"] = "quick"
    changed: dict[str, dict[RowNumber, Annotated[int, Field(ge=1, lt=2**31)]]] = {}


class _Rows(_Strict):
    key: list[str]
    ext: list[str]
    offset: list[Count]
    size: list[Count]
    header: list[Count]
    sha256: list[Digest]
    frames: list[Small]
    width: list[Small]
    height: list[Small]
    labels: list[list[Small]]
    decoder: list[str]
    start: list[Small]
    error: list[str | None]


def check_index(values: Mapping[str, Any]) -> None:
    """Raises ValueError (of pydantic, or with a message) unless these are the values of an index."""
    index = _Index.model_validate(dict(values))
    clips = {shard.name: shard.clips for shard in index.shards}
    if sum(clips.values()) > MAX_CLIPS:
        raise ValueError(f"{sum(clips.values())} clips; at most {MAX_CLIPS} are read")
    for shard, rows in index.quarantine.items():
        if wrong := [row for row in rows if int(row) >= clips.get(shard, 0)]:
            raise ValueError(f"its quarantine has row {wrong[0]} of shard {shard!r}, which doesn't exist")


def check_rows(values: Mapping[str, Sequence], entry: ShardEntry) -> None:
    """Raises ValueError (of pydantic, or with a message) unless these are the columns of a shard's rows."""
    rows = _Rows.model_validate(dict(values))
    lengths = {len(column) for _, column in rows}
    if lengths != {entry.clips}:
        raise ValueError(f"columns of {sorted(lengths)} rows; the index has {entry.clips}")
    for key, offset, size in zip(rows.key, rows.offset, rows.size, strict=True):
        if offset < HEADER or offset + size > entry.bytes:
            raise ValueError(f"clip {key!r} would lie outside the tar")
    for key, error, sides in zip(
        rows.key, rows.error, zip(rows.frames, rows.width, rows.height, strict=True), strict=True
    ):
        if error is None and 0 in sides:
            raise ValueError(f"clip {key!r} has no frames, or frames without an area")


def short_reason(error: ValueError) -> str:
    """The first fault in one line: pydantic's own text has a line for each."""
    if not hasattr(error, "errors"):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
