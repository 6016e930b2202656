"""Config files: reads YAML and `--set a.b=c`, and returns a checked config."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cache.differences import differences
from cache.errors import ReskdError
from cache.store import write_atomically
from stages.config.schema import Config
from stages.config.yaml_text import parse_yaml, read_yaml

C = TypeVar("C", bound=Config)
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # as Python has bytes of file names that aren't UTF-8


def load_config(model: type[C], file: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and its base files, apply the overrides `a.b=c` (values are YAML) in order, and validate.

    Raises ReskdError that names each wrong key, its value, and the most similar known key.
    """
    return validated(model, *read_config(file, overrides))


def read_config(file: Path | None, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The values of a file after the overrides, and the name of the config for messages."""
    values = {} if file is None else read_values(Path(file))
    for override in overrides:
        _apply_override(values, override)
    return values, f"config {file}" if file is not None else "config"


def validated(model: type[C], values: dict[str, Any], where: str) -> C:
    """A config of `values`. Raises ReskdError as `load_config`; `where` names the config in the message."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ReskdError(f"{where}:\n" + "\n".join(_explain(model, e) for e in error.errors())) from None


def read_values(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file, merged over the values of its `base`: one file or a list, relative to this file.

    Mappings are merged key by key. Other values (a list, a number, null) replace those of the base. A later base replaces
    values of an earlier one. `above`: the files whose base this file is.
    Raises ReskdError if a file doesn't exist, is no mapping, or is its own base, or if `base` doesn't name files.
    """
    if file.resolve() in above:
        raise ReskdError(f"config {file}: it is its own base, by way of {' -> '.join(p.name for p in above)}")
    try:
        values = read_yaml(file) or {}
    except OSError as error:
        where = f" (base of {above[-1]})" if above else "; give an existing file with --config"
        raise ReskdError(f"config {file}: {error.strerror}{where}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReskdError(f"config {file} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ReskdError(f"config {file} must be a mapping of keys to values, and is a {type(values).__name__}")
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ReskdError(f"config {file}: `base` must be a file or a list of files (given: {bases!r:.200})")
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
    """Nested mappings as one mapping of "a.b" to values."""
    result = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}{separator}", separator)
        else:
            result[prefix + str(key)] = value
    return result


def changed_keys(old: Config, new: Config, free: Collection[str], sides: tuple[str, str]) -> list[str]:
    """A line for each key outside `free` in which two configs differ. `sides` name the two in the lines."""
    values = ({k: v for k, v in flat(c.model_dump(mode="json")).items() if k not in free} for c in (old, new))
    return differences(*values, sides)


def save_config(config: Config, path: Path) -> None:
    """Write the config with all defaults as YAML. `load_config` reads an equal config from it."""
    write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def _apply_override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ReskdError(f"--set {override!r} is not of the form key=value (such as --set optim.lr=0.01)")
    try:
        value = text if _NO_UTF8.search(text) else parse_yaml(text)  # YAML takes UTF-8 alone; others are paths
    except yaml.YAMLError as error:
        raise ReskdError(f"--set {override}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    _section(values, parents, f"--set {override}")[last] = value


def set_key(values: dict, key: str, value: Any, what: str) -> None:
    """Set "a.b" in nested mappings. A mapping is merged into the old one. `what` names the change in error messages."""
    *parents, last = key.split(".")
    section = _section(values, parents, what)
    old = section.get(last)
    value = copy.deepcopy(value)  # so that two students never share one object, as YAML's aliases would
    section[last] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value


def _section(values: dict, parents: Sequence[str], what: str) -> dict:
    """The mapping at "a.b", created if it doesn't exist."""
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ReskdError(f"{what}: {parent!r} is a value and has no keys below it")
    return values


def _explain(model: type[Config], error: dict) -> str:
    path = [str(part) for part in error["loc"] if str(part).strip()]  # blank: the tag of a union
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"  {'.'.join(path)}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"  {'.'.join(path)}: missing; set it in the config or with --set {'.'.join(path)}=..."
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r:.200})" if path and not isinstance(given, dict) else ""
    return f"  {'.'.join(path) or model.__name__}: {message}{shown}"


def _known_keys(model: Any, path: Sequence[str]) -> list[str]:
    """The keys of the config, or of the part of the config, at `path`."""
    for part in path:
        hints = typing.get_type_hints(model)
        types = [hints.get(part), *typing.get_args(hints.get(part))]
        configs = [t for t in types if dataclasses.is_dataclass(t) or hasattr(t, "model_fields")]
        if not configs:  # for a union, pydantic puts the name of the class into the path
            continue
        model = configs[0]
    return [f.name for f in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else list(model.model_fields)
