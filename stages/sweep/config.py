"""The configs of a sweep's students, from a grid of keys, a list of students, or both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cache.errors import ReskdError
from stages.config.file import read_config
from stages.config.yaml_text import parse_yaml
from stages.student.cohort_config import named_students, student_config
from stages.student.config import TrainConfig


def load_sweep(
    file: Path | None = None, overrides: Sequence[str] = (), grid: Sequence[str] = ()
) -> dict[str, TrainConfig]:
    """The students of a sweep by name: each of `students` (see `load_cohort`) in each combination of the grid.

    The grid has keys and lists of values. It comes from `grid` in the file, and then from the arguments, "a.b=1,2".
    A student is named after its combination, such as "size=16,seed=0". Raises ReskdError for a grid that can't be read
    and for two students of one name.
    """
    values, where = read_config(file, overrides)
    axes = values.pop("grid", None) or {}
    if not isinstance(axes, dict):
        raise ReskdError(f"{where}: `grid` must map keys to lists of values (given: {axes!r:.200})")
    axes = {str(key): options for key, options in axes.items()}
    for line in grid:
        key, _, text = line.partition("=")
        try:
            axes[key] = parse_yaml(f"[{text}]")
        except yaml.YAMLError as error:
            raise ReskdError(f"--grid {line}: the values are not YAML, such as size=96,112: {error}") from error
    for key, options in axes.items():  # of the file and of --grid
        if not isinstance(options, list) or not options or None in options:
            raise ReskdError(f"{where}: the grid's {key!r} must be a list of values, such as --grid size=96,112")
    listed = named_students(values.pop("students"), where) if "students" in values else {"": {}}
    students = {}
    for (name, changes), combination in product(listed.items(), product(*axes.values())):
        point = dict(zip(axes, combination, strict=True))
        parts = [f"{key.split('.')[-1]}={_short(value)}" for key, value in point.items()]
        full_name = ",".join([*([str(name)] if name else []), *parts]) or "student"
        if full_name in students:
            raise ReskdError(f"{where}: two students are called {full_name}: name them in `students`, or leave one out")
        students[full_name] = student_config(values, full_name, {**changes, **point}, where)
    return students


def _short(value: Any) -> str:
    """A value as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).rstrip("-")
