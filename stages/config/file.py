"""Config files: YAML plus `--set a.b=c` in, a checked config out; an unknown key is told its nearest known one."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cache.errors import ReskdError
from cache.store import write_atomically
from stages.config.schema import Config, TrainConfig

C = TypeVar("C", bound=Config)


def load_config(model: type[C], file: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and the base files it names, apply `a.b=c` overrides (values are YAML) in order, validate.

    Raises ReskdError naming each offending key, its value, and the nearest known key.
    """
    return _validated(model, *_read(file, overrides))


def _read(file: Path | None, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The values of a file with the overrides applied, and what to call it in messages."""
    values = {} if file is None else read_values(Path(file))
    for override in overrides:
        _apply(values, override)
    return values, f"config {file}" if file is not None else "config"


def _validated(model: type[C], values: dict[str, Any], where: str) -> C:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ReskdError(f"{where}:\n" + "\n".join(_explain(model, e) for e in error.errors())) from None


def load_cohort(file: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, TrainConfig]:
    """The students of a config, by name: its one student, named "", or each of its mapping `students`.

    Such a student is the config with its own keys ("optim.lr" or nested) laid over it; its `output` is the config's with
    the name below it, and all have the clips in the order of the config's seed, whatever their own.
    Raises ReskdError as `load_config`, and for a name that is no file's.
    """
    values, where = _read(file, overrides)
    students = values.pop("students", None)
    if students is None:
        return {"": _validated(TrainConfig, values, where)}
    return {name: student_of(values, name, changes, where) for name, changes in _named(students, where).items()}


def _named(students: Any, where: str) -> dict[str, dict]:
    """The mapping `students`, whose names are text."""
    if not isinstance(students, dict) or not all(isinstance(c, dict) for c in students.values()) or not students:
        raise ReskdError(f"{where}: `students` must map names to the keys of each (given: {students!r})")
    named = {str(name): changes for name, changes in students.items()}
    if len(named) < len(students):
        raise ReskdError(f"{where}: `students` has a name twice (given: {list(students)})")
    return named


def load_sweep(
    file: Path | None = None, overrides: Sequence[str] = (), grid: Sequence[str] = ()
) -> dict[str, TrainConfig]:
    """The students of a sweep: those of `students` (see `load_cohort`), each in every combination of `grid`.

    A grid, the mapping `grid` of the file and then "a.b=1,2" of the arguments, has keys and the list of their values; a
    student is named after its combination, "size=16,seed=0".
    """
    values, where = _read(file, overrides)
    axes = values.pop("grid", None) or {}
    if not isinstance(axes, dict):
        raise ReskdError(f"{where}: `grid` must map keys to lists of values (given: {axes!r})")
    axes = {str(key): options for key, options in axes.items()}
    for line in grid:
        key, _, text = line.partition("=")
        try:
            axes[key] = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError as error:
            raise ReskdError(f"--grid {line}: the values are not YAML, such as size=96,112: {error}") from error
    for key, options in axes.items():
        if not isinstance(options, list) or not options or None in options:
            raise ReskdError(f"{where}: the grid's {key!r} must be a list of values, such as --grid size=96,112")
    listed = _named(values.pop("students"), where) if "students" in values else {"": {}}
    students = {}
    for (name, changes), combination in product(listed.items(), product(*axes.values())):
        point = dict(zip(axes, combination, strict=True))
        parts = [f"{key.split('.')[-1]}={_short(value)}" for key, value in point.items()]
        named = ",".join([*([str(name)] if name else []), *parts]) or "student"
        if named in students:
            raise ReskdError(f"{where}: two students are called {named}: name them under `students`, or leave one out")
        students[named] = student_of(values, named, {**changes, **point}, where)
    return students


def _short(value: Any) -> str:
    """A value as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).rstrip("-")


def student_of(values: Mapping[str, Any], name: str, changes: Mapping[str, Any], where: str) -> TrainConfig:
    """One student of a cohort: see `load_cohort`."""
    if not re.fullmatch(r"[\w.,=+-]*\w[\w.,=+-]*", name):
        raise ReskdError(f"{where}: the student {name!r} must have a name of letters, digits, and . , = + - _")
    mine = copy.deepcopy(dict(values))
    for key, value in changes.items():
        _set(mine, str(key), value, f"{where}, student {name}: {key}")
    if isinstance(values.get("output"), str) and mine.get("output") == values["output"]:
        mine["output"] = str(Path(values["output"]) / name)
    data = mine.get("data")
    if isinstance(data, dict) and data.get("order_seed") is None:
        mine["data"] = data | {"order_seed": values.get("seed", 0)}
    return _validated(TrainConfig, mine, f"{where}, student {name}")


def read_values(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file, laid over those of its `base`: a file or a list of them, relative to this one.

    Mappings are merged key by key; anything else (a list, a number, null) replaces what was there. Of several bases the
    later one wins. Raises ReskdError for a file that isn't there, is no mapping, or is its own base, and for a `base`
    that names no files.
    """
    if file.resolve() in above:
        raise ReskdError(f"config {file}: it is its own base, by way of {' -> '.join(p.name for p in above)}")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        where = f" (base of {above[-1]})" if above else "; give an existing file with --config"
        raise ReskdError(f"config {file}: {error.strerror}{where}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReskdError(f"config {file} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ReskdError(f"config {file} must be a mapping of keys to values, but is a {type(values).__name__}")
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ReskdError(f"config {file}: `base` must be a file or a list of files (given: {bases!r})")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, read_values(file.parent / base, (*above, file.resolve())))
    return _merge(merged, values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merge(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def flat(values: Mapping[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one, of "a.b" to values."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}{separator}", separator)
        else:
            found[prefix + str(key)] = value
    return found


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config, defaults included, as YAML that `load_config` reads back to an equal one."""
    write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ReskdError(f"--set {override!r} is not of the form key=value (such as --set optim.lr=0.01)")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReskdError(f"--set {override}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    _below(values, parents, f"--set {override}")[last] = value


def _set(values: dict, key: str, value: Any, what: str) -> None:
    """Lay a value over that of "a.b": mappings are merged."""
    *parents, last = key.split(".")
    below = _below(values, parents, what)
    old = below.get(last)
    value = copy.deepcopy(value)  # lest two students share it by an alias
    below[last] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value


def _below(values: dict, parents: Sequence[str], what: str) -> dict:
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ReskdError(f"{what}: {parent!r} is a value and has no keys below it")
    return values


def _explain(model: type[Config], error: dict) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"  {'.'.join(path)}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"  {'.'.join(path)}: missing; set it in the config or with --set {'.'.join(path)}=..."
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if path and not isinstance(given, dict) else ""
    return f"  {'.'.join(path) or model.__name__}: {message}{shown}"


def _fields_at(model: Any, path: Sequence[str]) -> list[str]:
    """Names of the keys that the (sub-)config at `path` knows."""
    for part in path:
        hints = typing.get_type_hints(model)
        options = [hints.get(part), *typing.get_args(hints.get(part))]
        found = [o for o in options if dataclasses.is_dataclass(o) or hasattr(o, "model_fields")]
        if not found:  # pydantic names the class of a union's member in the location
            continue
        model = found[0]
    return [f.name for f in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else list(model.model_fields)
