"""Annotation files that list one clip a line, or in JSON: minik, actnet, fcvid, mmaction, rawframes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.json_file import parse_json, read_limited

# A path, which may hold blanks and commas, and the integers at the end of the line.
_LINE = r"(.*?[^\s,])((?:%s-?[0-9]{1,18}){%s})"
_COMMA, _COMMA_OR_BLANK = r"\s*,\s*", r"[\s,]+"
SHOWN = 80  # characters of a wrong line in a message


@dataclass(frozen=True, slots=True)
class Annotation:
    """One entry of an annotation file. `paths`: where its video may lie, the likeliest first.

    `whole`: the name of the video that contains the clip, from `start` to `end` (seconds). `total` and `offset`: the
    number of frames, and the frames before the first, in a list of frame folders.
    """

    where: str  # file and line, for messages
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    whole: str | None = None
    start: float = 0.0
    end: float = 0.0
    total: int = 0
    offset: int | None = None


def minik_annotations(file: Path) -> list[Annotation]:
    """AR-Net's and AdaFocus's Mini-Kinetics lists: `path num_frames label`. The path may hold blanks."""
    return [
        Annotation(where, (path,), (str(numbers[-1]),))
        for where, path, numbers in _parse_lines(file, "{path} {num_frames} {label}", "minik", exactly=2)
    ]


def frame_count_annotations(file: Path, name: str) -> list[Annotation]:
    """AR-Net's ActivityNet and FCVID lists: `path,num_frames,label[,label...]`."""
    form = "{path},{num_frames},{label}[,{label}...]"
    return [
        Annotation(where, (path,), _label_texts(numbers[1:]))
        for where, path, numbers in _parse_lines(file, form, name, least=2, commas=True)
    ]


def mmaction_annotations(file: Path) -> list[Annotation]:
    """mmaction2's video lists: `file label [label...]`, or its JSON [{"filename": ..., "label": ...}]."""
    if begins_with(file, "["):
        form = '[{"filename": ..., "label": ...}, ...]'
        return [
            Annotation(where, (item["filename"],), _label_texts(_label_list(item["label"], where)))
            for where, item in json_items(file, form, "mmaction", {"filename": str, "label": (int, float, list)})
        ]
    return [
        Annotation(where, (path,), _label_texts(numbers))
        for where, path, numbers in _parse_lines(file, "{file} {label} [{label} ...]", "mmaction", least=1)
    ]


def rawframes_annotations(file: Path, *, with_offset: bool) -> list[Annotation]:
    """mmaction2's rawframe lists: `dir total label...`, or `dir start total label...` with an offset; or JSON."""
    if begins_with(file, "["):
        form = '[{"frame_dir": ..., "total_frames": ..., "label": ...}, ...]'
        types = {"frame_dir": str, "total_frames": int, "label": (int, float, list)} | (
            {"offset": int} if with_offset else {}
        )
        return [
            Annotation(where, (item["frame_dir"],), _label_texts(_label_list(item["label"], where)),
                       total=item["total_frames"], offset=item["offset"] if with_offset else None)
            for where, item in json_items(file, form, "rawframes", types)
        ]  # fmt: skip
    form = "{dir} {start} {total} {label} [{label} ...]" if with_offset else "{dir} {total} {label} [{label} ...]"
    annotations, first_label = [], 2 if with_offset else 1
    for where, path, numbers in _parse_lines(file, form, "rawframes", least=first_label + 1):
        offset, total = numbers[0] if with_offset else None, numbers[first_label - 1]
        annotations.append(Annotation(where, (path,), _label_texts(numbers[first_label:]), total=total, offset=offset))
    return annotations


def begins_with(file: Path, mark: str) -> bool:
    """Whether the first character of the file, blanks aside, is `mark`."""
    return read_text(file).lstrip()[:1] == mark


def read_text(file: Path) -> str:
    """Raises ReskdError for a file that can't be read or isn't UTF-8."""
    try:
        return read_limited(file).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReskdError(f"{file}: the annotations can't be read ({reason}). Give a file of text in UTF-8") from error


def read_json(file: Path, form: str, name: str) -> Any:
    """The content of a JSON file. `form` and `name`: the expected format, for the error."""
    text = read_text(file)
    try:
        return parse_json(text)
    except ValueError as error:
        raise wrong_format(f"{file} ({error})", text.strip(), form, name) from error


def json_items(file: Path, form: str, name: str, types: dict[str, type | tuple]) -> Iterator[tuple[str, dict]]:
    """(place in the file, object) for each object of a JSON list. Raises ReskdError unless each has fields of `types`."""
    items = read_json(file, form, name)
    if not isinstance(items, list) or not items:
        raise wrong_format(str(file), json.dumps(items), form, name)
    for i, item in enumerate(items):
        if not isinstance(item, dict) or not all(isinstance(item.get(field), kind) for field, kind in types.items()):
            raise wrong_format(f"{file}, entry {i}", json.dumps(item), form, name)
        yield f"{file}, entry {i}", item


def wrong_format(where: str, content: str, form: str, name: str) -> ReskdError:
    """The error for a file or a line that isn't in the format of `name`."""
    shown = content.splitlines()[0][:SHOWN] if content.strip() else "nothing"
    return ReskdError(f"{where}: {shown!r} where `{form}` was expected, as in annotations of {name}. Correct it, or "
                      "choose the NAME of its format")  # fmt: skip


def _parse_lines(
    file: Path, form: str, name: str, *, exactly: int | None = None, least: int = 0, commas: bool = False
) -> Iterator[tuple[str, str, list[int]]]:
    """(place, path, integers) for each line that isn't empty. `exactly`, `least`: how many integers a line has.

    `commas`: try commas as the only separators first, so that the path of `a 10,300,7` is `a 10`.
    """
    count = exactly or f"{least},"
    separators = (_COMMA, _COMMA_OR_BLANK) if commas else (_COMMA_OR_BLANK,)
    patterns = [re.compile(_LINE % (separator, count)) for separator in separators]
    is_empty = True
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        is_empty, where = False, f"{file}, line {number}"
        match = next(filter(None, (pattern.fullmatch(line.strip()) for pattern in patterns)), None)
        if not match:
            raise wrong_format(where, line.strip(), form, name)
        yield where, match[1], [int(n) for n in re.findall(r"-?[0-9]+", match[2])]
    if is_empty:
        raise wrong_format(str(file), "", form, name)


def _label_texts(numbers: list[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, numbers)))


def _label_list(label: int | list, where: str) -> list[int]:
    labels = label if isinstance(label, list) else [label]
    labels = [int(v) if isinstance(v, float) and v.is_integer() else v for v in labels]  # JSON's 1.0 is 1
    wrong = next((v for v in labels if isinstance(v, bool) or not isinstance(v, int)), None)
    if wrong is not None:
        raise ReskdError(f"{where}: {wrong!r} is no label. Give integers")
    return labels
