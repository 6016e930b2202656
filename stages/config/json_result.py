"""Results as JSON: for `--json FILE`, and those that earlier runs wrote."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.json_file import read_json
from cache.store import write_atomically
from stages.remote.probe import check_not_on_web_server, check_puts
from stages.remote.url_path import Location, UrlPath

STDOUT = Path("-")


@contextmanager
def json_result(json_file: Path | None) -> Iterator[Callable[[Any], None]]:
    """Yields a function that writes a result into `json_file`; it does nothing without a file, or in ranks behind the first.

    With `-` the result goes to standard output, and what the command prints there meanwhile goes to standard error.
    Raises ReskdError at once if the file can't be written.
    """
    if json_file is None or os.environ.get("RANK", "0") != "0":
        yield lambda result: None
        return
    if json_file != STDOUT:
        check_writable(json_file)
        yield lambda result: write_json(json_file, result)
        return
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield lambda result: print(json_text(result), end="", file=stdout, flush=True)


def write_json(json_file: Path, result: Any) -> None:
    """Write a result into a file, or to standard output (`-`)."""
    if json_file == STDOUT:
        print(json_text(result), end="", flush=True)
    else:
        write_atomically(json_file, json_text(result).encode())


def read_result(file: Location) -> Any:
    """A result that an earlier run wrote. Raises ReskdError if the file is damaged, or nested or large beyond measure."""
    try:
        return read_json(file, nan=True)
    except ValueError as error:
        raise ReskdError(f"{file} can't be read ({error}): delete it, and run the command again") from error


def json_text(result: Any) -> str:
    """A result as JSON. Dataclasses become objects, paths become strings, numbers that are not finite become null."""
    return json.dumps(_plain(result), indent=2) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, UrlPath):
        return str(value)
    if is_dataclass(value):
        return _plain(asdict(value))
    if hasattr(value, "model_dump"):  # a config
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def check_writable(output: Location, *, in_place: bool = False) -> None:
    """Raises ReskdError, before the work, if a file can't be written. Makes its folder. In a store an object is put beside it,
    and deleted.

    `in_place`: the file itself is opened, such as /dev/null. Else a new file takes its place, which needs a folder that can
    be written to, whatever the rights of the old file.
    """
    if output.is_dir():
        raise ReskdError(f"{output} is a folder: give the name of a file")
    if not isinstance(output, Path):
        check_not_on_web_server(output)
        check_puts(output)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReskdError(f"{output} can't be written ({error.strerror}): give another output") from error
    if in_place and output.exists():
        if not os.access(output, os.W_OK):
            raise ReskdError(f"{output} can't be written (you may not write to this file): change its rights, or give another "
                             "output")  # fmt: skip
    elif not os.access(output.parent, os.W_OK):
        raise ReskdError(f"{output} can't be written (you may not write to the folder {output.parent}): change its rights, or "
                         "give an output in another folder")  # fmt: skip
