"""What a cache is: the identity that no two runs may mix, and the state of the work. Kept as the root's attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache.codecs import codec_of
from cache.errors import ReskdError
from cache.identity import Identity

FORMAT = 2


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


def bytes_of_clip_view(identity: Identity, targets: Sequence[str] | None = None) -> int:
    """Bytes of one clip in one view, before zstd: the view itself and the targets named (all where None)."""
    named = identity.targets if targets is None else targets
    settings = [(name, identity.targets[name]) for name in named]
    size = sum(codec_of(n, s["codec"]).bytes([*s.get("grid", ()), s["width"]]) for n, s in settings)
    return 4 * identity.policy.num_frames + 16 + 2 + size  # frames, box, flip and valid
