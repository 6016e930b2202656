"""A CSV of the user's own videos: `path,label[,label...]`, or columns that its first line names."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.clips import Clip
from stages.prepare.folders import file_size
from stages.shards.file_tree import extension
from stages.shards.tar_scan import VIDEO_EXTENSIONS

# Names of columns in lists of others, in lower case and with _ for blanks and dashes. A number may follow: label_2.
PATH_COLUMN = re.compile(
    r"((video|clip|file)_?)?(path|file|file_?path|file_?name)s?|(video|clip|file)_?name|videos?|clips?"
)
LABEL_COLUMN = re.compile(
    r"(label|class|category|target|action)(_?(name|label|id|index|idx))?|labels|classes|activity|gesture|ground_truth"
)


@dataclass(frozen=True)
class Columns:
    """Where the path and the labels stand in a line. The cells after the last column are labels too if it is one."""

    path: int
    labels: tuple[int, ...]
    count: int

    def labels_of(self, fields: Sequence[str]) -> list[str]:
        more = range(self.count, len(fields)) if self.labels[-1] == self.count - 1 else ()
        return [fields[i] for i in (*self.labels, *more) if i < len(fields)]


def list_csv(file: Path, videos: Path) -> list[Clip]:
    """The clips of a CSV, sorted by name. Its paths are relative to the folder `videos`; an empty label: unlabelled.

    The first line is a header if its cells are names of columns that are known, in any order; otherwise it is a clip,
    `path,label[,label...]`, and its file must exist. A clip of a later line without a file has the size None.

    Raises ReskdError for a first line that is neither, for a line without a label column or path, for a comma in a path
    without quotation marks, for a path that is listed twice, and for a file that has no clips or can't be read.
    """
    clips, lines = [], {}
    columns = None
    for line, fields in _csv_lines(file):
        where = f"{file}, line {line}"
        if columns is None:
            columns = _header(fields, videos, where)
            if columns is not None:
                continue
            columns = Columns(0, (1,), 2)
            _check_first(fields, videos, where)
        if len(fields) <= max(columns.path, columns.labels[0]):
            raise ReskdError(f"{where}: {','.join(fields)!r} has no label. Write `path,label`, or `path,` for an unlabelled "
                             "clip")  # fmt: skip
        _check_commas(fields, columns, videos, where)
        listed = fields[columns.path]
        path = videos / listed
        name = os.path.relpath(path, videos).replace(os.sep, "/")
        if not listed or name in lines:
            problem = f"{listed!r} is listed before, in line {lines[name]}" if listed else "no path"
            raise ReskdError(f"{where}: {problem}. Keep one line for each video, with all its labels")
        lines[name] = line
        labels = tuple(dict.fromkeys(filter(None, columns.labels_of(fields))))
        clips.append(Clip(name, path, file_size(path), labels, where))
    if not clips:
        raise ReskdError(f"{file}: no clip in it. Write lines `path,label`")
    return sorted(clips, key=lambda clip: clip.name)


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line that isn't empty."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            for fields in reader:
                fields = [field.strip() for field in fields]
                if any(fields):
                    yield reader.line_num, fields
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ReskdError(
            f"{file}: not a readable CSV ({error}). Write lines `path,label[,label...]`, in UTF-8"
        ) from error


def _header(fields: Sequence[str], videos: Path, where: str) -> Columns | None:
    """The columns that a first line names; None if it is no header.

    Raises ReskdError for a header with two columns of paths, or two different ones of labels: `label,label_name` would
    give each clip two classes.
    """
    names = [re.sub(r"[\s-]+", "_", field.lower()) for field in fields]
    kinds = [re.sub(r"_?[0-9]+$", "", name) for name in names]
    paths = [i for i, kind in enumerate(kinds) if PATH_COLUMN.fullmatch(kind)]
    labels = [i for i, kind in enumerate(kinds) if LABEL_COLUMN.fullmatch(kind)]
    if not paths or len(paths) + len(labels) < len(fields) or file_size(videos / fields[0]) is not None:
        return None
    if len(paths) > 1 or len({kinds[i] for i in labels}) > 1:
        what = "paths" if len(paths) > 1 else "labels"
        raise ReskdError(f"{where}: {','.join(fields)!r} names several columns of {what}. Keep one of them")
    return Columns(paths[0], tuple(labels), len(fields)) if labels else Columns(paths[0], (1,), 2)


def _check_first(fields: Sequence[str], videos: Path, where: str) -> None:
    """Raises ReskdError if there is no file for a first line that isn't a known header: it may be an unknown one."""
    if fields[0] and file_size(videos / fields[0]) is None and not _joined_path(fields, videos):
        raise ReskdError(f"{where}: {','.join(fields)!r}: there is no file {fields[0]!r}, and not all of these are known "
                         "names of columns. Keep the columns of path and label, and name them `path,label` here; if this line "
                         "is a clip, write a line `path,label` above it")  # fmt: skip


def _check_commas(fields: Sequence[str], columns: Columns, videos: Path, where: str) -> None:
    """Raises ReskdError for a path that its own comma cuts in two, and for more cells than columns."""
    if path := _joined_path(fields[columns.path :], videos):
        raise ReskdError(f"{where}: {','.join(fields)!r}: a comma without quotation marks. Write a cell that holds a comma, "
                         f"such as {path!r}, between quotation marks")  # fmt: skip
    if len(fields) > columns.count and columns.labels[-1] != columns.count - 1:
        raise ReskdError(f"{where}: {','.join(fields)!r} has {len(fields)} cells, the first line {columns.count}. Write a "
                         "cell that holds a comma between quotation marks")  # fmt: skip


def _joined_path(fields: Sequence[str], videos: Path) -> str | None:
    """The path that the first cells were before their commas cut it; None if the first cell is a path.

    A later cell ends it with the extension of a video. Either the joined file exists, or the first cell's doesn't.
    """
    end = next((i for i in range(1, len(fields)) if extension(fields[i]) in VIDEO_EXTENSIONS), None)
    if end is None:
        return None
    joined = [separator.join(fields[: end + 1]) for separator in (",", ", ")]
    exists = next((path for path in joined if file_size(videos / path) is not None), None)
    return exists or (joined[1] if file_size(videos / fields[0]) is None else None)
