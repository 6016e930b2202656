"""The classes of a data set: their names in the order of their numbers, and the number of each label found."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cache.differences import first_difference
from cache.errors import ReskdError
from stages.shards.dataset import Dataset
from stages.shards.index import read_index

MAX_CLASSES = 100_000  # a larger number is taken for a mistake: an id in the column of the label


def read_classes(classes: Path | str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names in the order of their numbers: given, a file with one a line (or numbered, or a JSON list), a JSON
    object {name: number} such as Something-Something's labels.json, a prepared data set's folder, or a checkpoint of
    this program.

    Where each line is a number and a name, and the numbers go from 0 or 1 on without gaps, they are the names' numbers;
    a first line `id,name` is then a header.
    """
    if classes is None:
        return None
    where = "classes"
    if isinstance(classes, (str, Path)):
        where = str(classes)
        if Path(classes).is_dir():
            return tuple(read_index(Path(classes))["classes"])
        if Path(classes).suffix == ".safetensors":
            return _of_checkpoint(Path(classes))
        try:
            text = Path(classes).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ReskdError(f"{where}: no readable list of class names ({error}). Write one name a line") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        classes = _from_json(text, where) if re.match(r'\s*(\{|\[\s*")', text) else _numbered(lines) or lines
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice or not classes:
        what = f"{twice[0]!r} is listed twice" if twice else "no class in it"
        raise ReskdError(f"{where}: {what}. List each class once, in the order of its number")
    return tuple(classes)


def _of_checkpoint(path: Path) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="numpy") as file:
            return tuple(json.loads(file.metadata()["reskd"])["classes"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ReskdError(f"{path}: no checkpoint with class names ({error!r}). Give one that train-student or "
                         "import-checkpoint wrote, or a file with one name a line") from error  # fmt: skip


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
        known = {name: i for i, name in enumerate(classes)}
        unknown = next((label for label in found if label not in known), None)
        if unknown is None or names or not numbers:
            _refuse_unknown(found, unknown, classes)
            return tuple(classes), known
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


def _numbered(lines: Sequence[str]) -> list[str] | None:
    """The names of lines such as `0 abseiling`, `1,air drumming` by their numbers; None where lines are names alone."""
    found = [re.fullmatch(r"([0-9]+)[\s,]+(.+)", line) for line in lines]
    if len(found) > 2 and found[0] is None and re.fullmatch(r"[A-Za-z_]+,[A-Za-z_]+", lines[0]):
        found = found[1:]  # a header
    if len(found) < 2 or not all(found):
        return None
    names = dict(sorted((int(match[1]), match[2].strip('"')) for match in found))
    gapless = list(names) in (list(range(len(found))), list(range(1, len(found) + 1)))
    return list(names.values()) if gapless else None


def _from_json(text: str, where: str) -> list[str]:
    try:
        content = json.loads(text)
        if isinstance(content, list) and all(isinstance(name, str) for name in content):
            return content
        numbers = {name: int(number) for name, number in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ReskdError(f"{where}: begins like JSON, but isn't an object {{name: number}} or a list of names ({error}). "
                         "Write one, or one name a line") from error  # fmt: skip
    names = sorted(numbers, key=numbers.__getitem__)
    wrong = next((name for i, name in enumerate(names) if numbers[name] != i), None)
    if wrong is not None:
        raise ReskdError(f"{where}: {wrong!r} has the number {numbers[wrong]}, where {names.index(wrong)} was next. "
                         "Number the classes from 0 on, without gaps")  # fmt: skip
    return names


def _refuse_unknown(found: Mapping[str, str], unknown: str | None, classes: Sequence[str]) -> None:
    if unknown is not None:
        near = difflib.get_close_matches(unknown, classes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ReskdError(f"{found[unknown]}: label {unknown!r} is none of the {len(classes)} classes.{hint} Mend the "
                         "label, or the list of classes")  # fmt: skip


def check_classes(classes: tuple[str, ...], data: Dataset, checkpoint: Path) -> None:
    """Raises ReskdError where a teacher's classes, in their order, aren't the data set's."""
    if classes != tuple(data.classes):
        raise ReskdError(f"teacher {checkpoint} knows other classes than the data set {data.path} has "
                         f"({first_difference(classes, data.classes)}): prepare the data set in the teacher's order "
                         f"(prepare --class-order {checkpoint})")  # fmt: skip
