"""The manifest of a cache: its identity and the state of the work. It is stored as the root's attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from cache.codecs import codec_of
from cache.errors import ReskdError
from cache.identity import Identity, ShardEntry
from cache.view import ViewPolicy

FORMAT = 2


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
        except (KeyError, TypeError, AttributeError) as error:
            raise ReskdError(f"the cache's manifest is damaged ({error!r}): make the cache anew.") from error


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
