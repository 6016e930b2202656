"""Which videos there are and what they are labelled: class folders, CSV files, lists of classes.

A label is kept as the text its source has; `class_table` turns all of them into class numbers at once.
"""

import csv
import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ReskdError
from stages.data.index import read_index
from stages.data.tarscan import VIDEO_EXTENSIONS

MAX_CLASSES = 100_000  # a larger number is taken for a mistake: an id in the column of the label


@dataclass(frozen=True, slots=True)
class Clip:
    """A video to be packed. `name` is its path below the source, with slashes; the same on every machine."""

    name: str
    path: Path
    size: int | None  # bytes; None where there is no such file
    labels: tuple[str, ...]
    where: str  # of the annotation, for messages


def list_files(source: Path, skip: Path) -> list[Path]:
    """Files below a folder in a fixed order, without hidden ones (`._clip.mp4`) and those of the folder `skip`."""
    return list(_walk(source, skip.resolve()))


def list_videos(source: Path, files: Sequence[Path]) -> list[Clip]:
    """The videos among the files of a folder, sorted by name. Their class is their first folder; none: unlabelled."""
    clips = []
    for path in files:
        if extension(path.name) in VIDEO_EXTENSIONS:
            name = path.relative_to(source).as_posix()
            clips.append(Clip(name, path, _size(path), tuple(name.split("/")[:-1][:1]), str(path)))
    flat = next((clip for clip in clips if not clip.labels), None)
    if flat and any(clip.labels for clip in clips):
        raise ReskdError(f"{flat.path}: a video beside class folders, so its class is unknown. Move it into a folder, "
                         "or give a CSV of `path,label`")  # fmt: skip
    return sorted(clips, key=lambda clip: clip.name)


def list_csv(file: Path, videos: Path) -> list[Clip]:
    """Lines `path,label[,label...]`, paths relative to `videos`; `path,` is unlabelled; a first line whose first field
    is `path` is a header. Files that aren't there are listed too, with size None.
    """
    clips, lines = [], {}
    for line, fields in _csv_lines(file):
        where = f"{file}, line {line}"
        if len(fields) < 2:
            raise ReskdError(
                f"{where}: {fields[0]!r} has no label. Write `path,label`, or `path,` for an unlabelled clip"
            )
        path = videos / fields[0]
        name = os.path.relpath(path, videos).replace(os.sep, "/")
        if not fields[0] or name in lines:
            what = f"{fields[0]!r} is listed before, in line {lines[name]}" if fields[0] else "no path"
            raise ReskdError(f"{where}: {what}. Keep one line for each video, with all of its labels")
        lines[name] = line
        clips.append(Clip(name, path, _size(path), tuple(dict.fromkeys(filter(None, fields[1:]))), where))
    if not clips:
        raise ReskdError(f"{file}: no clip in it. Write lines `path,label`")
    return sorted(clips, key=lambda clip: clip.name)


def read_classes(classes: Path | str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names in the order of their numbers: given, a file with one a line, or a prepared data set's folder."""
    if classes is None:
        return None
    where = "classes"
    if isinstance(classes, (str, Path)):
        where = str(classes)
        if Path(classes).is_dir():
            return tuple(read_index(Path(classes))["classes"])
        try:
            classes = [
                line.strip() for line in Path(classes).read_text(encoding="utf-8-sig").splitlines() if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise ReskdError(f"{where}: no readable list of class names ({error}). Write one name a line") from error
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice or not classes:
        what = f"{twice[0]!r} is listed twice" if twice else "no class in it"
        raise ReskdError(f"{where}: {what}. List each class once, in the order of its number")
    return tuple(classes)


def class_table(
    found: Mapping[str, str], classes: Sequence[str] | None, *, names: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """All labels found (each with where, for messages) -> (class names, number of each label).

    With `classes`: labels are its names or, where they are all integers, positions in it. Without: integers are
    numbers as they are, of max+1 classes named "0", "1", ...; anything else is a name, and names are sorted.
    `names`: labels are names even where they look like integers (class folders; sorted by value then).
    """
    numbers = all(re.fullmatch(r"-?[0-9]+", label) for label in found)
    if classes is not None:
        unknown = next((label for label in found if label not in classes), None)
        if unknown is None or names or not numbers:
            _refuse_unknown(found, unknown, classes)
            return tuple(classes), {name: i for i, name in enumerate(classes)}
        limit = len(classes)
    elif names or not numbers:
        order = tuple(sorted(found, key=(lambda n: (int(n), n)) if numbers else None))
        return order, {name: i for i, name in enumerate(order)}
    else:
        limit = MAX_CLASSES
    for label, where in found.items():
        if not 0 <= int(label) < limit:
            raise ReskdError(f"{where}: label {label} is out of range, 0 to {limit - 1}. Mend the label, or the list "
                             "of classes")  # fmt: skip
    table = {label: int(label) for label in found}
    return tuple(classes or map(str, range(max(table.values(), default=-1) + 1))), table


def safe_keys(names: Sequence[str]) -> list[str]:
    """A WebDataset key for each name: no dots, slashes, or anything else that tar or a shell may trip over. Names that
    would share a key, and those too long for a tar header, get part of their digest; so a key depends on the clashes
    of its name alone.
    """
    keys = [re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(name)[0]).strip("_") for name in names]
    digests = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names]
    counts = Counter(keys)
    for length in (8, 16):
        keys = [k if k and len(k) <= 80 and counts[k] == 1 else f"{k[:60]}-{d[:length]}".lstrip("-")
                for k, d in zip(keys, digests, strict=True)]  # fmt: skip
        counts = Counter(keys)
    assert len(counts) == len(names)
    return keys


def extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _walk(source: Path, skip: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(source, followlinks=True, onerror=_unreadable):
        here = Path(folder).resolve()
        # A link to a folder above would be followed for ever.
        below = [n for n in folders if not here.is_relative_to(t := (here / n).resolve()) and t != skip]
        folders[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise ReskdError(
        f"{error.filename}: folder can't be read ({error.strerror}). Mend its permissions, or move it away"
    )


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            for number, fields in enumerate(reader):
                fields = [field.strip() for field in fields]
                if any(fields) and not (number == 0 and fields[0].lower() == "path"):
                    yield reader.line_num, fields
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ReskdError(
            f"{file}: not a readable CSV ({error}). Write lines `path,label[,label...]`, in UTF-8"
        ) from error


def _refuse_unknown(found: Mapping[str, str], unknown: str | None, classes: Sequence[str]) -> None:
    if unknown is not None:
        near = difflib.get_close_matches(unknown, classes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ReskdError(f"{found[unknown]}: label {unknown!r} is none of the {len(classes)} classes.{hint} Mend the "
                         "label, or the list of classes")  # fmt: skip
