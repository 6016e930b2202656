"""The manifest of a cache: its identity and the state of the work. It is stored as the root's attributes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from cache.codecs import CODECS, codec_of
from cache.errors import ReskdError
from cache.identity import CONSTANTS, Identity, ShardEntry
from cache.view import ViewPolicy

FORMAT = 2
# Limits on what a manifest claims, checked before memory is taken for it.
MAX_VIEWS = 100_000
MAX_CLIPS = 200_000_000  # of a data set: a number for each clip must fit into memory
MAX_TARGET_BYTES = 256 << 20  # of one clip in one view; maps of 16 frames of 512 px have 33 MiB
_CONSTANT_FILE = re.compile(rf"({'|'.join(CONSTANTS)})/(zarr[.]json|c([.][0-9]{{1,9}})*)")


@dataclass(frozen=True)
class Manifest:
    """The root's attributes.

    `views`: how many views are planned (V). `finalised`: how many are finished (0: none yet), in all `finalised_targets` and
    on the first `finalised_shards` of the shard list. A growing cache adds new shards at the end of that list.
    `quarantine`: shard -> row -> reason, for the finished views. `packages` and `notes` (the measured error of an encoding,
    the teacher time) are recorded and never compared.
    `constants`: file -> [size, sha256] of the arrays at the root; empty if no features are stored.
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
        """Raises ReskdError for another format version, for keys that this version doesn't know, and for missing keys."""
        version = data.get("format")
        if version != FORMAT:
            raise ReskdError(
                f"the cache has format version {version}, this program reads {FORMAT}: "
                "make the cache anew with cache-teacher, or use the version of reskd that wrote it."
            )
        try:
            if fault := _fault(data):
                raise TypeError(fault)
            if unknown := _unknown_keys(data):
                raise ReskdError(
                    "a newer version of reskd wrote the cache: its manifest has keys that this version doesn't know "
                    f"({', '.join(unknown)}). Use the newer version, or make the cache anew with cache-teacher."
                )
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
        except ReskdError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ReskdError(f"the cache's manifest is damaged ({error!r}): make the cache anew.") from error


def is_digest(value: Any) -> bool:
    """Whether a value is [size, sha256], as the cache lists its files."""
    return isinstance(value, list) and list(map(type, value)) == [int, str]


def _fault(data: Mapping[str, Any]) -> str | None:
    """What is wrong with the types and ranges of a manifest's JSON; None if nothing is. A KeyError is a missing key."""
    identity = data["identity"]
    numbers = [data[name] for name in ("views", "finalised", "finalised_shards")]
    numbers += [shard[name] for shard in identity["shards"] for name in ("clips", "bytes")]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or data["views"] > MAX_VIEWS:
        return "numbers of views, shards, clips or bytes out of range"
    if sum(shard["clips"] for shard in identity["shards"]) > MAX_CLIPS:
        return f"more than {MAX_CLIPS} clips"
    texts = [identity["decoder"], *identity["classes"], *data["finalised_targets"]]
    texts += [shard[name] for shard in identity["shards"] for name in ("name", "sha256", "keys_sha256")]
    if not all(isinstance(text, str) for text in texts) or isinstance(identity["classes"], str):
        return "names or digests that are no text"
    if wrong := [file for file in data["constants"] if not _CONSTANT_FILE.fullmatch(file)]:
        return f"{wrong[0]!r:.80} is no file of an array at the root"
    if not all(map(is_digest, data["constants"].values())):
        return "constants without a size and a sha256"
    if not isinstance(data["notes"], dict) or not isinstance(identity["teacher"], dict):
        return "notes or teacher that are no objects"
    return _target_fault(identity["targets"])


def _target_fault(targets: Mapping[str, Any]) -> str | None:
    for name, settings in targets.items():
        if name not in CODECS:
            return f"a target {name!r:.80}; there are {', '.join(CODECS)}"
        shape = [*settings.get("grid", ()), settings["width"]]
        if not all(type(n) is int and n > 0 for n in shape):
            return f"{name} of the shape {shape!r:.80}"
        codec = CODECS[name].get(settings["codec"])  # None: one that this program doesn't have
        if codec is not None and codec.bytes(shape) > MAX_TARGET_BYTES:
            return f"{name} of more than {MAX_TARGET_BYTES >> 20} MiB a clip and view"
    return None


def _unknown_keys(data: Mapping[str, Any]) -> list[str]:
    """Keys of a manifest's JSON that this version doesn't know, such as "identity.colour"."""
    identity = data["identity"]
    parts = {
        "": (Manifest, [data]),
        "identity.": (Identity, [identity]),
        "identity.policy.": (ViewPolicy, [identity["policy"]]),
        "identity.shards.": (ShardEntry, identity["shards"]),
    }
    unknown = set()
    for prefix, (kind, mappings) in parts.items():
        known = {"format", *(f.name for f in fields(kind) if f.compare)}  # `as_read` isn't compared, and isn't stored
        unknown |= {f"{prefix}{key}" for mapping in mappings for key in mapping.keys() - known}
    return sorted(unknown)


def bytes_of_clip_view(identity: Identity, targets: Sequence[str] | None = None) -> int:
    """Bytes of one clip in one view, before zstd: the view and its `targets` (None: all)."""
    settings = {name: identity.targets[name] for name in (identity.targets if targets is None else targets)}
    size = sum(codec_of(n, s["codec"]).bytes([*s.get("grid", ()), s["width"]]) for n, s in settings.items())
    return 4 * identity.policy.num_frames + 16 + 2 + size  # frames, box, flip and valid
