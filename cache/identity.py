"""The identity of a cache: all that decides its content. Two runs with different identities can't share a cache."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from cache.errors import ReskdError
from cache.view import ViewPolicy

# Arrays at the root, float32. `classifier` [d,K] and `classifier_bias` [K] turn stored maps into the teacher's logits; basis
# and mean are included in them. They are absent if the teacher has a norm, or its own pooling, before its classifier. The
# others but the last say how maps were reduced (see `reduction.py`). `channel_std` [d] is the deviation of each stored channel:
# losses may divide by it, and it decides no content.
CONSTANTS = ("classifier", "classifier_bias", "basis", "mean", "scale", "offset", "channel_std")


@dataclass(frozen=True)
class ShardEntry:
    """One tar shard. `name` is its path relative to the data set; `keys_sha256` is `keys_digest` of its keys in tar order.

    `rules`: the number of the rules that say which picture frame i of a video is (see `stages/video/decode.py`).
    """

    name: str
    clips: int
    bytes: int
    sha256: str
    keys_sha256: str
    rules: int = 1

    def to_json(self) -> dict[str, Any]:
        """The fields. The first rules aren't written: the versions that used them knew no number."""
        values = asdict(self)
        return values if self.rules != 1 else {name: value for name, value in values.items() if name != "rules"}


@dataclass(frozen=True)
class Identity:
    """All that decides the content of a cache. Stage one refuses to write into a cache with another identity.

    `teacher`: {"model": {...}, "weights_sha256": str, "size": pixels, "dtype": "float32" | "bfloat16", "batch_size",
    "bn": "running" | "recalibrate"}.
    `decoder`: name and version. `targets`: {"logits": {"codec": "uint8" | "float16", "width": K}} and, optionally,
    "features": {"codec": one of CODECS["features"], "grid": [T', g, g'], "width": d, "map": [T, H, W, D], "sample": on what
    the basis and the ranges were estimated (None: there are none), "constants_sha256": digest of basis and ranges}.
    `as_read`: the JSON that the identity was read from. An older version may have written fewer keys. The fingerprints of
    its shards depend on the JSON that it wrote, so the same JSON is written again.
    """

    format: int
    teacher: dict[str, Any]
    decoder: str
    policy: ViewPolicy
    shards: tuple[ShardEntry, ...]
    classes: tuple[str, ...]
    targets: dict[str, Any]
    as_read: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        check_shard_names([entry.name for entry in self.shards])
        # Tuples become lists, so that an identity equals itself after it was written to JSON and read again.
        for name in ("teacher", "targets"):
            object.__setattr__(self, name, json.loads(_canonical(getattr(self, name))))

    def to_json(self) -> dict[str, Any]:
        """The JSON that is stored. If the identity was read, it keeps the keys that it was read with."""
        shards = [entry.to_json() for entry in self.shards]
        return json.loads(_canonical({**(self.as_read or self._fields()), "shards": shards, "targets": self.targets}))

    def _fields(self) -> dict[str, Any]:
        """All fields but shards and targets, with today's keys."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("as_read", "shards", "targets")}
        return values | {"policy": self.policy.to_json()}

    def comparable(self) -> dict[str, Any]:
        """All fields but shards, with today's keys, for comparison with another identity."""
        return json.loads(_canonical(self._fields() | {"policy": asdict(self.policy), "targets": self.targets}))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Identity":
        policy = {k: tuple(v) if isinstance(v, list) else v for k, v in data["policy"].items()}
        shards = tuple(ShardEntry(**entry) for entry in data["shards"])
        classes = tuple(data["classes"])
        return Identity(
            **{**data, "policy": ViewPolicy(**policy), "shards": shards, "classes": classes, "as_read": dict(data)}
        )

    def shard(self, name: str) -> ShardEntry:
        """The entry of a shard. Raises ReskdError if the cache has no such shard."""
        entry = self._entries_by_name().get(name)
        if entry is None:
            raise ReskdError(f"shard {name!r} is not in the cache's shard list ({len(self.shards)} shards): "
                             "run cache-teacher on the data set again, which adds it.")  # fmt: skip
        return entry

    def fingerprint(self, shard: str) -> str:
        """sha256 of all that decides the content of one shard's group, except for its targets and the other shards."""
        settings = self.as_read or self._fields()
        common = {name: value for name, value in settings.items() if name not in ("shards", "targets")}
        return _sha256(_canonical({**common, "shard": self.shard(shard).to_json()}))

    def target_fingerprint(self, target: str) -> str:
        """sha256 of a target's settings."""
        return _sha256(_canonical(self.targets[target]))

    def _entries_by_name(self) -> dict[str, ShardEntry]:
        if "_index" not in self.__dict__:  # kept: a linear search for each of 10,000 shards would take a minute
            object.__setattr__(self, "_index", {entry.name: entry for entry in self.shards})
        return self.__dict__["_index"]


def keys_digest(keys: Sequence[str]) -> str:
    """sha256 of a shard's keys in tar order. The digest is taken of their JSON list, so ["ab"] and ["a", "b"] differ."""
    return _sha256(_canonical(list(keys)))


def check_shard_names(names: Sequence[str]) -> None:
    """Raises ReskdError for a name that can't be a folder inside the cache, or that comes twice."""
    unique = set(names)
    if len(unique) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ReskdError(f"shard {twice!r} comes twice in the shard list: every shard needs a name of its own.")
    for name in names:
        parts = name.split("/")
        if (
            parts[0] in CONSTANTS
            or "\\" in name
            or any(part in ("", "zarr.json") or part.startswith(".") for part in parts)
        ):
            raise ReskdError(
                f"shard name {name!r} can't be used: a name is a path relative to the data set, without '..', hidden or "
                f"empty parts and backslashes, and not in a folder {' or '.join(CONSTANTS)}; rename the shard or move "
                "the data set's folder."
            )
        parent = next((str(p) for p in PurePosixPath(name).parents if str(p) in unique), None)
        if parent is not None:
            raise ReskdError(f"shards {parent!r} and {name!r} can't lie inside one another: rename one of them.")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
