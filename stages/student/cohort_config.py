"""The configs of students that train together: one file, with each student's own keys over the common ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.config.file import read_config, set_key, validated
from stages.student.config import TrainConfig


def load_cohort(file: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, TrainConfig]:
    """The students of a config, by name: its one student, named "", or each of its mapping `students`.

    Such a student is the config with its own keys ("optim.lr" or nested) laid over it; its `output` is the config's with
    the name below it, and all have the clips in the order of the config's seed, whatever their own.
    Raises ReskdError as `load_config`, and for a name that is no file's.
    """
    values, where = read_config(file, overrides)
    students = values.pop("students", None)
    if students is None:
        return {"": validated(TrainConfig, values, where)}
    return {name: student_of(values, name, changes, where) for name, changes in named_students(students, where).items()}


def named_students(students: Any, where: str) -> dict[str, dict]:
    """The mapping `students`, whose names are text."""
    if not isinstance(students, dict) or not all(isinstance(c, dict) for c in students.values()) or not students:
        raise ReskdError(f"{where}: `students` must map names to the keys of each (given: {students!r})")
    named = {str(name): changes for name, changes in students.items()}
    if len(named) < len(students):
        raise ReskdError(f"{where}: `students` has a name twice (given: {list(students)})")
    return named


def student_of(values: Mapping[str, Any], name: str, changes: Mapping[str, Any], where: str) -> TrainConfig:
    """One student of a cohort: see `load_cohort`."""
    if not re.fullmatch(r"[\w.,=+-]*\w[\w.,=+-]*", name):
        raise ReskdError(f"{where}: the student {name!r} must have a name of letters, digits, and . , = + - _")
    mine = copy.deepcopy(dict(values))
    for key, value in changes.items():
        set_key(mine, str(key), value, f"{where}, student {name}: {key}")
    if isinstance(values.get("output"), str) and mine.get("output") == values["output"]:
        mine["output"] = str(Path(values["output"]) / name)
    data = mine.get("data")
    if isinstance(data, dict) and data.get("order_seed") is None:
        mine["data"] = data | {"order_seed": values.get("seed", 0)}
    return validated(TrainConfig, mine, f"{where}, student {name}")
