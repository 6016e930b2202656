"""Reads the configs of several students from one file: common keys, and each student's own keys under `students`.

config.py has the config of one student. cohort.py checks that the students can share a stream.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.config.file import read_config, set_key, validated
from stages.remote.url_path import Location, location
from stages.student.config import TrainConfig


def load_cohort(file: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, TrainConfig]:
    """The configs of the students by name. A file without the mapping `students` has one student, named "".

    A student's config is the file's config with the student's own keys ("optim.lr" or nested) laid over it. Its folder is
    the config's `output` / its name. All students have the clips in the order of the config's seed, whatever their seeds.
    Raises ReskdError as `load_config` does, and for a name that can't be a folder's.
    """
    values, where = read_config(file, overrides)
    students = values.pop("students", None)
    if students is None:
        return {"": validated(TrainConfig, values, where)}
    return {
        name: student_config(values, name, changes, where) for name, changes in named_students(students, where).items()
    }


def folders_to_report(students: Mapping[str, TrainConfig]) -> list[Location]:
    """The folder of a run, or the one that holds the runs of a cohort (that of the first student, if there are several).

    At URLs, of which a report lists nothing, all runs.
    """
    outputs = [config.output for config in students.values()]
    return [outputs[0].parent] if len(outputs) > 1 and isinstance(outputs[0], Path) else outputs


def named_students(students: Any, where: str) -> dict[str, dict]:
    """The mapping `students`, checked, with names as text. `where`: the config file, for messages."""
    if not isinstance(students, dict) or not all(isinstance(c, dict) for c in students.values()) or not students:
        raise ReskdError(f"{where}: `students` must map names to the keys of each (given: {students!r})")
    named = {str(name): changes for name, changes in students.items()}
    if len(named) < len(students):
        raise ReskdError(f"{where}: `students` has a name twice (given: {list(students)})")
    return named


def student_config(values: Mapping[str, Any], name: str, changes: Mapping[str, Any], where: str) -> TrainConfig:
    """The config of one student of a cohort: see `load_cohort`. `changes`: the student's own keys."""
    if not re.fullmatch(r"[\w.,=+-]*\w[\w.,=+-]*", name):
        raise ReskdError(f"{where}: the student {name!r} must have a name of letters, digits, and . , = + - _")
    merged = copy.deepcopy(dict(values))
    for key, value in changes.items():
        set_key(merged, str(key), value, f"{where}, student {name}: {key}")
    if isinstance(values.get("output"), str) and merged.get("output") == values["output"]:
        merged["output"] = str(location(values["output"]) / name)
    data = merged.get("data")
    if isinstance(data, dict) and data.get("order_seed") is None:
        merged["data"] = data | {"order_seed": values.get("seed", 0)}
    return validated(TrainConfig, merged, f"{where}, student {name}")
