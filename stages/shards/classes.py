"""The classes of a data set: their names in the order of their numbers, and the class number of each label."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cache.differences import first_difference
from cache.errors import ReskdError, StoreError
from cache.json_file import parse_json, read_limited
from stages.remote.local_copy import local_copy
from stages.remote.url_path import Location, UrlPath, location
from stages.runtime.utf8_path import utf8_path
from stages.shards.dataset import Dataset
from stages.shards.index import INDEX, read_index

_INTEGER = r"-?[0-9]{1,300}"  # more digits are a name: Python refuses to read thousands of them
MAX_CLASSES = 100_000  # a larger number counts as a mistake: an id in the label's column


def read_classes(classes: Location | str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names in the order of their numbers; None for None.

    `classes` is one of: the names themselves; a text file with one name a line; a JSON list of names; a JSON object
    {name: number}, such as Something-Something's labels.json; the folder of a prepared data set; a checkpoint of this
    program. If each line of a text file is a number and a name, and the numbers start at 0 or 1 and have no gaps, the
    numbers order the names; a first line `id,name` is then a header. Names are in Unicode's form NFC, but those of a data
    set or a checkpoint are as they are there. A file or folder may be at a URL.

    Raises ReskdError for a source that can't be read, for no name, and for a name that is listed twice.
    """
    if classes is None:
        return None
    source = "classes"  # for messages
    if isinstance(classes, (str, Path, UrlPath)):
        source, path = str(classes), location(classes)
        if is_data_set(path):
            return tuple(read_index(path)["classes"])
        if path.suffix == ".safetensors":
            with local_copy(path) as copy:
                return _classes_of_checkpoint(copy)
        try:
            text = read_limited(path).decode("utf-8-sig")
        except StoreError:
            raise
        except (OSError, ValueError) as error:
            raise ReskdError(f"{source}: no readable list of class names ({error}). Write one name a line") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        is_json = re.match(r'\s*(\{|\[\s*")', text)
        classes = _names_from_json(text, source) if is_json else _names_by_number(lines) or lines
    classes = list(map(_nfc, classes))
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated or not classes:
        problem = f"{repeated[0]!r} is listed twice" if repeated else "no class in it"
        raise ReskdError(f"{source}: {problem}. List each class once, in the order of its number")
    return tuple(classes)


def is_data_set(path: Location) -> bool:
    """Whether class names are to be read from a data set: a folder, or a URL with an index below it."""
    return path.is_dir() if isinstance(path, Path) else (path / INDEX).is_file()


def _classes_of_checkpoint(path: Path) -> tuple[str, ...]:
    try:
        with utf8_path(path) as name, safe_open(name, framework="numpy") as file:
            return _checked_names(parse_json(file.metadata()["reskd"], nan=True)["classes"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ReskdError(f"{path}: no checkpoint with class names ({error!r}). Give a checkpoint of train-student or "
                         "import-checkpoint, or a file with one name a line") from error  # fmt: skip


def _checked_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("not a list of names")
    return tuple(names)


def _class_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):  # Something-Something writes "0"
        raise TypeError(f"{value!r} is no class number")
    return int(value)


def class_table(
    labels: Mapping[str, str], classes: Sequence[str] | None, *, names: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, class number of each label). `labels`: every label of the data set -> its place, for messages.

    With `classes`, a label is one of these names; if all labels are integers, a label may be a position in `classes`.
    Without `classes`, integer labels are class numbers, and the max+1 classes are named "0", "1", ...; other labels are
    class names, which are sorted. `names`: labels are names even if they look like integers (names of class folders);
    such names are sorted by value. `1.0` is the number 1 if all labels are whole numbers. Labels that differ only in
    Unicode's form (NFC or NFD) are one class, whose name is NFC unless `classes` has it otherwise.
    Raises ReskdError for an unknown label and for a number out of range.
    """
    meant = _labels_as_meant(labels, classes, names=names)
    places: dict[str, str] = {}
    for label, place in labels.items():
        places.setdefault(meant[label], place)
    order, numbers = _number_labels(places, classes, names=names)
    return order, {label: numbers[meant[label]] for label in labels}


def forms_of_one_class(labels: Iterable[str]) -> list[str]:
    """Names that are among `labels` in several Unicode forms, such as `é` in one character (NFC) and in two (NFD)."""
    counts = Counter(map(_nfc, set(labels)))
    return sorted(name for name, count in counts.items() if count > 1)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _labels_as_meant(labels: Iterable[str], classes: Sequence[str] | None, *, names: bool) -> dict[str, str]:
    """Label -> the label in NFC, and without the zeros of `1.0` if all are whole numbers that aren't names of classes."""
    meant = {label: _nfc(label) for label in labels}
    are_names = names or (classes is not None and set(meant.values()) <= set(map(_nfc, classes)))
    if not are_names and all(re.fullmatch(_INTEGER + r"([.]0*)?", label) for label in labels):
        meant = {label: label.partition(".")[0] for label in labels}
    return meant


def _number_labels(
    labels: Mapping[str, str], classes: Sequence[str] | None, *, names: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """`class_table` for labels that are written in one way each."""
    are_integers = all(re.fullmatch(_INTEGER, label) for label in labels)
    if classes is not None:
        if twice := forms_of_one_class(classes):
            raise ReskdError(f"classes: {twice[0]!r} is listed twice, in two Unicode forms. Remove one of them")
        numbers = {_nfc(name): i for i, name in enumerate(classes)}
        unknown = next((label for label in labels if label not in numbers), None)
        if unknown is None or names or not are_integers:
            _refuse_unknown(labels, unknown, classes)
            return tuple(classes), numbers
        limit = len(classes)
    elif names or not are_integers:
        order = tuple(sorted(labels, key=(lambda n: (int(n), n)) if are_integers else None))
        return order, {name: i for i, name in enumerate(order)}
    else:
        limit = MAX_CLASSES
    for label, place in labels.items():
        if not 0 <= int(label) < limit:
            raise ReskdError(f"{place}: label {label} is out of range, 0 to {limit - 1}. Correct the label, or the list "
                             "of classes")  # fmt: skip
    table = {label: int(label) for label in labels}
    return tuple(classes or map(str, range(max(table.values(), default=-1) + 1))), table


def _names_by_number(lines: Sequence[str]) -> list[str] | None:
    """Names from lines such as `0 abseiling` or `1,air drumming`, by number; None if the lines have no numbers."""
    matches = [re.fullmatch(r"([0-9]{1,18})[\s,]+(.+)", line) for line in lines]
    if len(matches) > 2 and matches[0] is None and re.fullmatch(r"[A-Za-z_]+,[A-Za-z_]+", lines[0]):
        matches = matches[1:]  # without the header
    if len(matches) < 2 or not all(matches):
        return None
    names = dict(sorted((int(match[1]), match[2].strip('"')) for match in matches))
    gapless = list(names) in (list(range(len(matches))), list(range(1, len(matches) + 1)))
    return list(names.values()) if gapless else None


def _names_from_json(text: str, source: str) -> list[str]:
    try:
        content = parse_json(text.removeprefix("\ufeff"))
        if isinstance(content, list):
            return list(_checked_names(content))
        numbers = {name: _class_number(number) for name, number in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ReskdError(f"{source}: begins like JSON, but isn't an object {{name: number}} or a list of names ({error}). "
                         "Write such JSON, or one name a line") from error  # fmt: skip
    names = sorted(numbers, key=numbers.__getitem__)
    wrong = next((name for i, name in enumerate(names) if numbers[name] != i), None)
    if wrong is not None:
        raise ReskdError(f"{source}: {wrong!r} has the number {numbers[wrong]}, the next number is {names.index(wrong)}. "
                         "Number the classes from 0 on, without gaps")  # fmt: skip
    return names


def _refuse_unknown(labels: Mapping[str, str], unknown: str | None, classes: Sequence[str]) -> None:
    if unknown is not None:
        similar = difflib.get_close_matches(unknown, classes, n=1)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise ReskdError(f"{labels[unknown]}: label {unknown!r} is none of the {len(classes)} classes.{hint} Correct the "
                         "label, or the list of classes")  # fmt: skip


def check_classes(classes: tuple[str, ...], data: Dataset, checkpoint: Location) -> None:
    """Raises ReskdError unless the data set has the teacher's `classes` in the same order."""
    if classes != tuple(data.classes):
        difference = first_difference(classes, data.classes, ("in the checkpoint", "in the data set"))
        raise ReskdError(f"teacher {checkpoint} knows other classes than the data set {data.path} has ({difference}): "
                         f"prepare the data set in the teacher's order (prepare --class-order {checkpoint})")  # fmt: skip
