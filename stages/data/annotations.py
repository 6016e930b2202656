"""Which clips there are and what they are labelled: class folders, CSV files, the labels inside foreign shards.

A label is kept as the text its source has; `class_table` turns all of them into class numbers at once.
"""

import csv
import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.data.tarscan import VIDEO_EXTENSIONS, Sample, read_member, scan_tar

# Where foreign shards keep a clip's label, first choice first: a `.cls` file, then fields of its `.json`. video2dataset
# copies whatever columns its user asks for into the json; `label_names` is what `prepare` itself writes.
LABEL_FIELDS = ("cls", "label_names", "labels", "label", "class")
MAX_CLASSES = 100_000  # a larger number is taken for a mistake: an id in the column of the label


@dataclass(frozen=True, slots=True)
class Clip:
    """A video to be packed. `name` is its path below the source, with slashes; the same on every machine."""

    name: str
    path: Path
    size: int | None  # bytes; None where there is no such file
    labels: tuple[str, ...]
    where: str  # of the annotation, for messages


def list_folder(source: Path) -> tuple[list[Clip], int]:
    """The videos of a folder, sorted by name, and the number of other files. Class = first folder; none: unlabelled."""
    clips, others = [], 0
    for path in _walk(source):
        if _extension(path.name) not in VIDEO_EXTENSIONS:
            others += 1
            continue
        name = path.relative_to(source).as_posix()
        labels = (name.split("/")[0],) if "/" in name else ()
        clips.append(Clip(name, path, path.stat().st_size, labels, str(path)))
    flat = next((clip for clip in clips if not clip.labels), None)
    if flat and any(clip.labels for clip in clips):
        raise ReskdError(f"{flat.path}: a video beside class folders, so its class is unknown. Move it into a folder, "
                         "or give a CSV of `path,label`")  # fmt: skip
    return clips, others


def list_csv(file: Path, videos: Path) -> list[Clip]:
    """Lines `path,label[,label...]`, paths relative to `videos`; `path,` is unlabelled; a first line whose first field
    is `path` is a header. Files that aren't there are listed too, with size None.
    """
    clips, lines = [], {}
    for line, fields in _csv_lines(file):
        where = f"{file}, line {line}"
        if len(fields) < 2:
            raise ReskdError(f"{where}: {fields[0]!r} has no label. Write `path,label`, or `path,` for an unlabelled clip")
        path = videos / fields[0]
        name = os.path.relpath(path, videos).replace(os.sep, "/")
        if not fields[0] or name in lines:
            what = f"{fields[0]!r} is listed before, in line {lines[name]}" if fields[0] else "no path"
            raise ReskdError(f"{where}: {what}. Keep one line for each video, with all of its labels")
        lines[name] = line
        size = path.stat().st_size if path.is_file() else None
        clips.append(Clip(name, path, size, tuple(dict.fromkeys(filter(None, fields[1:]))), where))
    if not clips:
        raise ReskdError(f"{file}: no clip in it. Write lines `path,label`")
    return sorted(clips, key=lambda clip: clip.name)


def list_shards(source: Path) -> list[tuple[str, int]]:
    """(name relative to the folder, bytes) of its tars, nested ones too, sorted by name."""
    tars = [path for path in _walk(source) if path.suffix == ".tar"]
    return [(path.relative_to(source).as_posix(), path.stat().st_size) for path in tars]


def read_classes(classes: Path | str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names in the order of their numbers: given, or a file with one a line."""
    if classes is None:
        return None
    where = "classes"
    if isinstance(classes, (str, Path)):
        where = str(classes)
        try:
            classes = [line.strip() for line in Path(classes).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
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
            raise ReskdError(f"{where}: label {label} is out of range, 0 to {limit - 1}. Mend the label, or the list of "
                             "classes")  # fmt: skip
    table = {label: int(label) for label in found}
    return tuple(classes or map(str, range(max(table.values(), default=-1) + 1))), table


def shard_labels(path: Path, text: bool) -> tuple[list[Sample], list[dict[str, tuple[str, ...]]]]:
    """The clips of a foreign tar, and for each the labels of every field that it has (empty: said to be unlabelled).

    `text`: the `.txt` is a class name; a caption otherwise, which is passed over. Raises ReskdError as `scan_tar` does,
    and for a member that isn't what its extension says.
    """
    samples, labels = scan_tar(path), []
    with open(path, "rb") as file:
        for sample in samples:
            fields = {}
            for ext, member in sample.labels.items():
                where = f"{path}: member {member.name!r}"
                if ext == "txt" and not text:
                    continue
                try:
                    content = read_member(file, member).decode("utf-8-sig").strip()
                    fields |= _json_labels(json.loads(content), where) if ext == "json" else {ext: _texts(content, where)}
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise ReskdError(f"{where}: not {ext} ({error}). Write it anew, or remove it") from error
            labels.append(fields)
    return samples, labels


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


def _walk(source: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order; hidden ones (`._clip.mp4`, `.prepare`) aren't data."""
    for folder, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            for number, fields in enumerate(reader):
                fields = [field.strip() for field in fields]
                if any(fields) and not (number == 0 and fields[0].lower() == "path"):
                    yield reader.line_num, fields
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ReskdError(f"{file}: not a readable CSV ({error}). Write lines `path,label[,label...]`, in UTF-8") from error


def _refuse_unknown(found: Mapping[str, str], unknown: str | None, classes: Sequence[str]) -> None:
    if unknown is not None:
        near = difflib.get_close_matches(unknown, classes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ReskdError(f"{found[unknown]}: label {unknown!r} is none of the {len(classes)} classes.{hint} Mend the label, "
                         "or the list of classes")  # fmt: skip


def _json_labels(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ReskdError(f"{where}: not a JSON object. Write one, with the label as `label`")
    return {field: _texts(value[field], where) for field in LABEL_FIELDS[1:] if field in value}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None and v != ""]
    wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, (str, int))), None)
    if wrong is not None:
        raise ReskdError(f"{where}: {wrong!r} is no label. Give integers or class names, or null for an unlabelled clip")
    return tuple(dict.fromkeys(str(v).strip() for v in values))
