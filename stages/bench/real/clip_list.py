"""The list of real clips: its splits, and the sources that are held out for choices."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from cache.errors import ReskdError
from cache.store import write_atomically

COLUMNS = ("path", "label", "source")
HELD_OUT = 4  # one source in 4 of the train side is held out
TENTH = 10  # one clip in 10 keeps its label, at least one of each class


@dataclass(frozen=True)
class ListedClip:
    path: str  # relative to the folder of the videos
    label: str
    source: str  # clips of one source are near-duplicates
    sides: Mapping[str, str]  # name of a split -> "train" or "test"


def read_clips(path: Path, videos: Path, classes: int | None) -> list[ListedClip]:
    """The clips of a list, those of the first `classes` classes.

    Raises ReskdError for a missing column or video, a side that is neither train nor test, and a source on both sides.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReskdError(f"{path} can't be read as a CSV file: {error}") from error
    names = [name for name in (rows[0] if rows else {}) if name and name.startswith("split")]
    if lacking := [name for name in COLUMNS if not rows or name not in rows[0]] + ([] if names else ["split1"]):
        raise ReskdError(
            f"{path}: no column {lacking[0]}: its first line must be path,label,source,split1[,split2,...]"
        )
    kept = sorted({row["label"] for row in rows})[:classes]
    clips = [
        ListedClip(row["path"], row["label"], row["source"], {name: row[name] for name in names})
        for row in rows if row["label"] in kept
    ]  # fmt: skip
    for clip in clips:
        if bad := next((f"{n} {side!r}" for n, side in clip.sides.items() if side not in ("train", "test")), None):
            raise ReskdError(f"{path}, clip {clip.path!r}: {bad} is neither train nor test")
        if not (videos / clip.path).is_file():
            raise ReskdError(f"{path}: {videos / clip.path} doesn't exist: give the folder of its paths")
    for name in names:
        sides = {side: {clip.source for clip in clips if clip.sides[name] == side} for side in ("train", "test")}
        if both := sides["train"] & sides["test"]:
            raise ReskdError(
                f"{path}: source {min(both)!r} is on both sides of {name}: the test would know the training clips"
            )
    return clips


def splits_of(clips: Iterable[ListedClip]) -> list[str]:
    """The names of the splits, in the order of the columns."""
    return list(next(iter(clips)).sides)


def hold_out(clips: list[ListedClip], split: str) -> tuple[list[ListedClip], list[ListedClip]]:
    """The train side of a split as (fitted, held out): about a quarter of each class, and no source on both sides."""
    train = [clip for clip in clips if clip.sides[split] == "train"]
    folds = StratifiedGroupKFold(HELD_OUT, shuffle=True, random_state=0)
    fitted, held = next(folds.split(train, [c.label for c in train], [c.source for c in train]))
    return [train[i] for i in fitted], [train[i] for i in held]


def few_labels(clips: list[ListedClip]) -> set[str]:
    """The paths of a tenth of the clips, at least one of each class: each tenth clip of a class, in the list's order."""
    chosen, seen = set(), Counter()
    for clip in clips:
        if seen[clip.label] % TENTH == 0:
            chosen.add(clip.path)
        seen[clip.label] += 1
    return chosen


def write_list(path: Path, clips: Iterable[ListedClip], videos: Path, labelled: set[str] | None = None) -> None:
    """A list for `prepare`. Only the clips in `labelled` keep their labels; None: all."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label"])
    for c in clips:
        rows.writerow([(videos / c.path).resolve(), c.label if labelled is None or c.path in labelled else ""])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
