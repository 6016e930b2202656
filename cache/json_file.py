"""JSON that others may have written: what no honest file holds is refused before it costs time or memory."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 256 << 20  # an index of a million shards; a larger file would take many GB once it is parsed
MAX_DEPTH = 100  # our own files have at most 10 levels; Python's own limit is a RecursionError, here or much later


def read_json(path: Path, *, nan: bool = False) -> Any:
    """The content of a JSON file. Raises OSError, and ValueError as `parse_json`."""
    return parse_json(read_limited(path), nan=nan)


def read_limited(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, and ValueError for a file of more than MAX_BYTES."""
    with path.open("rb") as file:  # of a local path, or of one at a URL
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    return data


def parse_json(text: str | bytes, *, nan: bool = False) -> Any:
    """The value of a JSON text. `nan`: NaN and Infinity, which Python writes for numbers that are not finite, are read.

    Raises ValueError for a text that isn't JSON, is nested more than MAX_DEPTH deep, or has a number of too many digits.
    """
    try:
        value = json.loads(text, parse_constant=None if nan else _refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, (list, dict))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        level = [v for values in level for v in _containers(values)]
    return value


def _containers(values: list | dict) -> list:
    parts = values.values() if isinstance(values, dict) else values
    return [v for v in parts if isinstance(v, (list, dict))] if {list, dict} & set(map(type, parts)) else []


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
