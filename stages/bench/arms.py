"""The arms of the fidelity study. An arm is one way to train the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FEATURES, LOGITS = {"feature_mse": 2.0}, {"logit_kl": 1.0}
VIEWS = (1, 2, 4, 8)
FRACTIONS = (2, 4, 8, 16)  # a basis keeps 1/2, 1/4, ... of the teacher's channels
SCHEDULES = (0.5, 1.0, 2.0, 4.0)  # in units of the study's epochs
RAW: dict[str, Any] = {"codec": "float16"}


@dataclass(frozen=True)
class Arm:
    """One way to train the student."""

    name: str
    losses: dict[str, float] = field(default_factory=dict)
    teacher: str | None = None  # None (labels only), "online" or "cached"
    net: str = "teacher"  # the teacher's network: "teacher" or "wide"
    views: int = 0  # stored views that are replayed
    features: dict[str, Any] | None = None  # the encoding of the stored maps
    packed: bool = False  # a pack of crops replaces the videos
    schedule: float = 1.0  # in units of the study's epochs

    @property
    def cache(self) -> str | None:
        """The name of the arm's cache. Arms with the same stored targets share a cache."""
        if self.teacher != "cached":
            return None
        parts = [f"{key}{value}" for key, value in (self.features or RAW).items() if key != "sample"]
        text = "-".join(part.replace("[", "").replace("]", "").replace(", ", "x") for part in parts)
        return f"{self.net}-views-{text}"

    @property
    def compared(self) -> bool:
        """Whether it differs from other arms only in views, encodings or packs. Such differences are small."""
        return self.losses == FEATURES and self.net == "teacher" and self.schedule == 1.0


LABELS = Arm("labels alone")
ONLINE = Arm("in the loop, features", FEATURES, "online")


def first_arms(quick: bool) -> list[Arm]:
    """Labels only; the teacher in the loop; replay of V views."""
    logits = [Arm("in the loop, logits", LOGITS, "online"), Arm("in the loop, both", FEATURES | LOGITS, "online")]
    return [
        LABELS,
        ONLINE,
        *([] if quick else logits),
        *[Arm(f"replay, V = {v}", FEATURES, "cached", views=v, features=RAW) for v in VIEWS[: 2 if quick else None]],
    ]


def encoding_arms(views: int, width: int, grid: tuple[int, int], quick: bool) -> list[Arm]:
    """Encodings of the maps of `views` views: rounding, bases, the student's grid, and combinations."""
    base = Arm("", FEATURES, "cached", views=views)
    codecs, fractions = (("int4",), FRACTIONS[1:2]) if quick else (("int8", "int4", "int3"), FRACTIONS)
    encodings: dict[str, dict[str, Any]] = {codec: {"codec": codec} for codec in codecs}
    encodings |= {f"PCA 1/{f}, int8": {"codec": "int8", "dims": width // f} for f in fractions}
    encodings["grid, float16"] = {"codec": "float16", "grid": list(grid)}
    encodings |= {
        f"grid, PCA 1/{f}, int8": {"codec": "int8", "grid": list(grid), "dims": width // f} for f in fractions[:3]
    }
    if not quick:  # as few bits per number as 50 kB and 20 kB for maps of 8×7×7×2048
        encodings["PCA 1/8, int4"] = {"codec": "int4", "dims": width // 8}
        encodings["grid, PCA 1/8, int4"] = {"codec": "int4", "grid": list(grid), "dims": width // 8}
    return [replace(base, name=name, features=features) for name, features in encodings.items()]


def wide_arms(views: int, width: int, grid: tuple[int, int]) -> list[Arm]:
    """A teacher of another width, which needs a projector: in the loop, float16, codecs, bases, and the student's grid."""
    base = Arm("", FEATURES, "cached", net="wide", views=views)
    bases: dict[str, dict[str, Any]] = {f"wide teacher, {codec}": {"codec": codec} for codec in ("int8", "int4")}
    bases |= {f"wide teacher, PCA 1/{f}, int8": {"codec": "int8", "dims": width // f} for f in (4, 16)}
    bases["wide teacher, grid, PCA 1/16, int8"] = {"codec": "int8", "grid": list(grid), "dims": width // 16}
    return [
        replace(ONLINE, name="wide teacher, in the loop", net="wide"),
        replace(base, name="wide teacher, float16", features=RAW),
        *[replace(base, name=name, features=features) for name, features in bases.items()],
    ]


def packed_arm(best: Arm) -> Arm:
    """The arm `best` with a pack of crops in place of the videos."""
    return replace(best, name=f"{best.name}, from a pack of crops", packed=True)


def schedule_arms(arms: Sequence[Arm]) -> list[Arm]:
    """The same arms with the shorter and the longer schedules."""
    return [
        replace(arm, name=f"{arm.name}, {s:g} × the epochs", schedule=s) for arm in arms for s in SCHEDULES if s != 1.0
    ]


def plain_arm(arm: Arm) -> str | None:
    """The name of the arm that differs in one thing: it has no pack, or the same maps are stored as float16.

    None if `arm` has neither a pack nor an encoding.
    """
    if arm.packed:
        return arm.name.partition(", from")[0]
    if arm.features in (None, RAW) or arm.schedule != 1.0:
        return None
    return "wide teacher, float16" if arm.net == "wide" else f"replay, V = {arm.views}"


def reference_arm(arm: Arm) -> Arm:
    """The arm with the same teacher in the loop and the same epochs. `arm` is compared with it, seed by seed."""
    online = replace(ONLINE, name="wide teacher, in the loop", net="wide") if arm.net == "wide" else ONLINE
    if arm.schedule == 1.0:
        return online
    return replace(online, name=f"{online.name}, {arm.schedule:g} × the epochs", schedule=arm.schedule)
