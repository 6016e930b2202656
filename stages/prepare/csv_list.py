"""A CSV of the user's own videos: `path,label[,label...]`."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.clips import Clip
from stages.prepare.folders import extension, file_size


def list_csv(file: Path, videos: Path) -> list[Clip]:
    """The clips of a CSV, sorted by name. Its paths are relative to the folder `videos`; `path,` is an unlabelled clip.

    The first line is a header if it begins with `path`, or if it is a name without an extension and then `label` or
    `class`. A clip whose file doesn't exist has the size None. Raises ReskdError for a line without a label column or
    path, for a path that is listed twice, and for a file that has no clips or can't be read.
    """
    clips, lines = [], {}
    for line, fields in _csv_lines(file):
        where = f"{file}, line {line}"
        if len(fields) < 2:
            raise ReskdError(
                f"{where}: {fields[0]!r} has no label. Write `path,label`, or `path,` for an unlabelled clip"
            )
        path = videos / fields[0]
        name = os.path.relpath(path, videos).replace(os.sep, "/")
        if not fields[0] or name in lines:
            problem = f"{fields[0]!r} is listed before, in line {lines[name]}" if fields[0] else "no path"
            raise ReskdError(f"{where}: {problem}. Keep one line for each video, with all its labels")
        lines[name] = line
        clips.append(Clip(name, path, file_size(path), tuple(dict.fromkeys(filter(None, fields[1:]))), where))
    if not clips:
        raise ReskdError(f"{file}: no clip in it. Write lines `path,label`")
    return sorted(clips, key=lambda clip: clip.name)


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line that is neither empty nor a header."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            for number, fields in enumerate(reader):
                fields = [field.strip() for field in fields]
                if any(fields) and not (number == 0 and _is_header(fields)):
                    yield reader.line_num, fields
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ReskdError(
            f"{file}: not a readable CSV ({error}). Write lines `path,label[,label...]`, in UTF-8"
        ) from error


def _is_header(fields: list[str]) -> bool:
    second = fields[1].lower() if len(fields) > 1 else ""
    return fields[0].lower() == "path" or (second in ("label", "labels", "class") and not extension(fields[0]))
