"""What a cache is: all that decides its content, and that no two runs may mix."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from cache.errors import ReskdError
from cache.view import ViewPolicy

# Arrays at the root, float32: the teacher's classifier [d,K] and [K], of maps as they are stored (in their basis, its mean
# included), and what else maps were reduced by (see `reduction.py`).
CONSTANTS = ("classifier", "classifier_bias", "basis", "mean", "scale", "offset")


@dataclass(frozen=True)
class ShardEntry:
    """One tar shard. `name` is relative to the data set; `keys_sha256` is `keys_digest` of its keys in tar order."""

    name: str
    clips: int
    bytes: int
    sha256: str
    keys_sha256: str


@dataclass(frozen=True)
class Identity:
    """All that decides the content of a cache. Stage one refuses to mix any two of these.

    `teacher`: {"model": {...}, "weights_sha256": str, "size": pixels, "dtype": "float32" | "bfloat16", "batch_size",
    "bn": "running" | "recalibrate"}.
    `decoder`: name and version. `targets`: {"logits": {"codec": "uint8" | "float16", "width": K}} and, optionally,
    "features": {"codec": one of CODECS["features"], "grid": [T', g, g'], "width": d, "map": [T, H, W, D], "sample": what the
    basis and ranges were estimated on, None where there are none, "constants_sha256": of these}.
    `as_read`: the JSON that it was read from. An older version may have written fewer keys; the fingerprints of its shards
    are of what it wrote, so that is what is written again.
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
        # Tuples become lists here, so that an identity equals what is read back from JSON.
        for name in ("teacher", "targets"):
            object.__setattr__(self, name, json.loads(_canonical(getattr(self, name))))

    def to_json(self) -> dict[str, Any]:
        """As it is stored: by the keys that it was read with, if it was read."""
        shards = [asdict(entry) for entry in self.shards]
        own = {"shards": shards, "targets": self.targets}
        return json.loads(_canonical({**(self.as_read or self._fields()), **own}))

    def _fields(self) -> dict[str, Any]:
        """All but shards and targets, by today's keys."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("as_read", "shards", "targets")}
        return values | {"policy": self.policy.to_json()}

    def comparable(self) -> dict[str, Any]:
        """The same by today's keys, for comparison with another identity."""
        return json.loads(_canonical(self._fields() | {"policy": asdict(self.policy), "targets": self.targets}))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Identity":
        policy = {k: tuple(v) if isinstance(v, list) else v for k, v in data["policy"].items()}
        shards = tuple(ShardEntry(**entry) for entry in data["shards"])
        own = {
            "policy": ViewPolicy(**policy),
            "shards": shards,
            "classes": tuple(data["classes"]),
            "as_read": dict(data),
        }
        return Identity(**{**data, **own})

    def shard(self, name: str) -> ShardEntry:
        """The entry of a shard. Raises ReskdError where the cache isn't made for it."""
        entry = self._by_name().get(name)
        if entry is None:
            raise ReskdError(f"shard {name!r} is not in the cache's shard list ({len(self.shards)} shards).")
        return entry

    def fingerprint(self, shard: str) -> str:
        """sha256 of all that decides the content of one shard's group, but for its targets: the other shards don't."""
        alone = {
            name: value for name, value in (self.as_read or self._fields()).items() if name not in ("shards", "targets")
        }
        return _sha256(_canonical({**alone, "shard": asdict(self.shard(shard))}))

    def target_fingerprint(self, target: str) -> str:
        """sha256 of a target's settings."""
        return _sha256(_canonical(self.targets[target]))

    def _by_name(self) -> dict[str, ShardEntry]:
        if "_index" not in self.__dict__:  # a linear search for each of 10,000 shards would take a minute
            object.__setattr__(self, "_index", {entry.name: entry for entry in self.shards})
        return self.__dict__["_index"]


def keys_digest(keys: Sequence[str]) -> str:
    """sha256 of a shard's keys in tar order (of their JSON list, so that no two lists agree by concatenation)."""
    return _sha256(_canonical(list(keys)))


def check_shard_names(names: Sequence[str]) -> None:
    """Raises ReskdError for a name that can't be a folder inside the cache, or that comes twice."""
    seen = set(names)
    if len(seen) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ReskdError(f"shard {twice!r} comes twice in the shard list: every shard needs a name of its own.")
    for name in names:
        parts = name.split("/")
        own = parts[0] in CONSTANTS  # the cache's own folders
        if own or "\\" in name or any(part in ("", "zarr.json") or part.startswith(".") for part in parts):
            raise ReskdError(
                f"shard name {name!r} can't be used: names are relative to the data set, without '..', hidden or "
                f"empty parts and backslashes, and not in a folder {' or '.join(CONSTANTS)}; rename the shard or move "
                "the data set's folder."
            )
        above = next((str(p) for p in PurePosixPath(name).parents if str(p) in seen), None)
        if above is not None:
            raise ReskdError(f"shards {above!r} and {name!r} can't lie inside one another: rename one of them.")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
