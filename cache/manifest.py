"""What a cache is: the identity that no two runs may mix, and the state of the work. Kept as the root's attributes."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any

from cache.errors import ReskdError
from cache.view import ViewPolicy

FORMAT = 2

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
    "features": {"codec": one of ITEM_SIZES, "grid": [T', g, g'], "width": d, "map": [T, H, W, D], "sample": what the basis
    and ranges were estimated on, None where there are none, "constants_sha256": of these}.
    """

    format: int
    teacher: dict[str, Any]
    decoder: str
    policy: ViewPolicy
    shards: tuple[ShardEntry, ...]
    classes: tuple[str, ...]
    targets: dict[str, Any]

    def __post_init__(self):
        check_shard_names([entry.name for entry in self.shards])
        # Tuples become lists here, so that an identity equals what is read back from JSON.
        for name in ("teacher", "targets"):
            object.__setattr__(self, name, json.loads(_canonical(getattr(self, name))))

    def to_json(self) -> dict[str, Any]:
        return json.loads(_canonical(asdict(self) | {"policy": self.policy.to_json()}))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Identity":
        data = dict(data)
        policy = {k: tuple(v) if isinstance(v, list) else v for k, v in data.pop("policy").items()}
        shards = tuple(ShardEntry(**entry) for entry in data.pop("shards"))
        return Identity(**data | {"policy": ViewPolicy(**policy), "shards": shards, "classes": tuple(data["classes"])})

    def shard(self, name: str) -> ShardEntry:
        """The entry of a shard. Raises ReskdError where the cache isn't made for it."""
        entry = self._by_name().get(name)
        if entry is None:
            raise ReskdError(f"shard {name!r} is not in the cache's shard list ({len(self.shards)} shards).")
        return entry

    def fingerprint(self, shard: str) -> str:
        """sha256 of all that decides the content of one shard's group, but for its targets: the other shards don't."""
        alone = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("policy", "shards", "targets")}
        return _sha256(_canonical(alone | {"policy": self.policy.to_json(), "shard": asdict(self.shard(shard))}))

    def target_fingerprint(self, target: str) -> str:
        """sha256 of a target's settings."""
        return _sha256(_canonical(self.targets[target]))

    def _by_name(self) -> dict[str, ShardEntry]:
        if "_index" not in self.__dict__:  # a linear search for each of 10,000 shards would take a minute
            object.__setattr__(self, "_index", {entry.name: entry for entry in self.shards})
        return self.__dict__["_index"]


@dataclass(frozen=True)
class Manifest:
    """The root's attributes. `views` are planned (V), `finalised` of them are finished (0: none yet): in all of
    `finalised_targets`, on the first `finalised_shards` of the shard list, to which a growing cache adds at its end.

    `quarantine`: shard -> row -> reason, of the finalised views. `packages` and `notes` (the measured error of an encoding,
    what the cache was paid with) are recorded and never compared.
    `constants`: file -> [size, sha256] of the arrays at the root; empty where no features are stored.
    """

    identity: Identity
    views: int
    finalised: int = 0
    finalised_shards: int = 0
    finalised_targets: tuple[str, ...] = ()
    quarantine: dict[str, dict[int, str]] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    constants: dict[str, list] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.identity.format,
            "identity": self.identity.to_json(),
            "views": self.views,
            "finalised": self.finalised,
            "finalised_shards": self.finalised_shards,
            "finalised_targets": list(self.finalised_targets),
            "quarantine": {s: {str(r): q[r] for r in sorted(q)} for s, q in sorted(self.quarantine.items())},
            "packages": dict(sorted(self.packages.items())),
            "constants": {name: list(digest) for name, digest in sorted(self.constants.items())},
            "notes": self.notes,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Manifest":
        """Raises ReskdError for another format version, and for a manifest with fields missing or unknown."""
        version = data.get("format")
        if version != FORMAT:
            raise ReskdError(
                f"the cache has format version {version}, this program reads {FORMAT}: "
                "make the cache anew with cache-teacher, or use the version of reskd that wrote it."
            )
        try:
            return Manifest(
                identity=Identity.from_json(data["identity"]),
                views=data["views"],
                finalised=data["finalised"],
                finalised_shards=data["finalised_shards"],
                finalised_targets=tuple(data["finalised_targets"]),
                quarantine={s: {int(r): why for r, why in q.items()} for s, q in data["quarantine"].items()},
                packages=dict(data["packages"]),
                constants=dict(data["constants"]),
                notes=dict(data["notes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ReskdError(f"the cache's manifest is damaged ({error!r}): make the cache anew.") from error


ITEM_SIZES = {"float16": 2, "int8": 1, "int4": 1, "int3": 1}  # bytes of a number of a feature map, before zstd


def bytes_of_clip_view(identity: Identity, targets: Sequence[str] | None = None) -> int:
    """Bytes of one clip in one view, before zstd: the view itself and the targets named (all where None)."""
    logits, maps = identity.targets["logits"], identity.targets.get("features")
    size = {
        "logits": logits["width"] + 8 if logits["codec"] == "uint8" else 2 * logits["width"],
        "features": ITEM_SIZES[maps["codec"]] * math.prod([*maps["grid"], maps["width"]]) if maps else 0,
    }
    return 4 * identity.policy.num_frames + 16 + 2 + sum(size[t] for t in (size if targets is None else targets))


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


def grown(stored: Identity, wanted: Identity) -> tuple[Identity, list[str]]:
    """A cache's identity once shards and targets that only `wanted` has are added to it, and what else differs.

    The new shards come after the old ones, whatever their place in `wanted`.
    """
    old = {entry.name for entry in stored.shards}
    new = tuple(entry for entry in wanted.shards if entry.name not in old)
    targets = {name: settings for name, settings in wanted.targets.items() if name in stored.targets}
    kept = {entry.name: entry for entry in wanted.shards if entry.name in old}
    # In the cache's order: which shard a data set lists first is no difference once a cache may grow.
    shards = tuple(kept[entry.name] for entry in stored.shards if entry.name in kept)
    lines = differences(stored, replace(wanted, shards=shards, targets=targets))
    return replace(stored, shards=stored.shards + new, targets=wanted.targets), lines


def differences(stored: Identity, wanted: Identity) -> list[str]:
    """One line for each field in which two identities differ, naming both sides; empty where they agree."""
    left, right = stored.to_json(), wanted.to_json()
    lines = _differing_shards(stored.shards, wanted.shards)
    del left["shards"], right["shards"]
    lines += _differing_classes(left.pop("classes"), right.pop("classes"))
    flat_left, flat_right = dict(_flatten(left)), dict(_flatten(right))
    for name in dict.fromkeys([*flat_left, *flat_right]):
        a, b = (json.dumps(flat[name]) if name in flat else "nothing" for flat in (flat_left, flat_right))
        if a != b:
            lines.append(f"{name}: the cache has {a}, this run wants {b}")
    return lines


def _flatten(value: Any, prefix: str = ""):
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _differing_shards(stored: Sequence[ShardEntry], wanted: Sequence[ShardEntry], shown: int = 3) -> list[str]:
    a, b = {e.name: e for e in stored}, {e.name: e for e in wanted}
    gone, new = [name for name in a if name not in b], [name for name in b if name not in a]
    changed = [name for name in a if name in b and a[name] != b[name]]
    lines = []
    for names, what in ((gone, "only in the cache"), (new, "only in this run")):
        if names:
            lines.append(f"shards: {len(names)} {what} (of {len(a)} and {len(b)}): {_some(names, shown)}")
    for name in changed[:shown]:
        pairs = [(f.name, getattr(a[name], f.name), getattr(b[name], f.name)) for f in fields(ShardEntry)]
        parts = ", ".join(f"{field_name} {x} in the cache, {y} in this run" for field_name, x, y in pairs if x != y)
        lines.append(f"shards: {len(changed)} of {len(a)} changed: {name}: {parts}")
    if not lines and [e.name for e in stored] != [e.name for e in wanted]:
        lines.append(f"shards: the same {len(a)} shards in another order")
    return lines


def _differing_classes(stored: list[str], wanted: list[str]) -> list[str]:
    if stored == wanted:
        return []
    if len(stored) != len(wanted):
        return [f"classes: the cache has {len(stored)}, this run {len(wanted)}"]
    i = next(i for i, pair in enumerate(zip(stored, wanted, strict=True)) if pair[0] != pair[1])
    return [f"classes: class {i} is {stored[i]!r} in the cache, {wanted[i]!r} in this run"]


def _some(names: Sequence[str], shown: int) -> str:
    return ", ".join(names[:shown]) + (" …" if len(names) > shown else "")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
