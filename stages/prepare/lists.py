"""Annotations one line each, as published: `path num_frames label`, `file label [label...]`, and the like."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import ReskdError

# A path, which may hold blanks and commas, and the integers at the end of the line.
_LINE = r"(.*?[^\s,])((?:%s-?[0-9]+){%s})"
_COMMA, _ANY = r"\s*,\s*", r"[\s,]+"
SHOWN = 80  # characters of a bad line in a message


@dataclass(frozen=True, slots=True)
class Entry:
    """One annotation. `names`: where its video may lie, the likeliest first; `whole`: the video that it is a part of,
    `start` to `end` seconds; `total` and `offset`: frames, of a list of frames.
    """

    where: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    whole: str | None = None
    start: float = 0.0
    end: float = 0.0
    total: int = 0
    offset: int | None = None


def minik_entries(file: Path) -> list[Entry]:
    """AR-Net's and AdaFocus's Mini-Kinetics lists: `path num_frames label`, blanks in the path and all."""
    return [
        Entry(where, (path,), (str(numbers[-1]),))
        for where, path, numbers in _lines(file, "{path} {num_frames} {label}", "minik", exactly=2)
    ]


def frame_count_entries(file: Path, name: str) -> list[Entry]:
    """AR-Net's ActivityNet and FCVID lists: `path,num_frames,label[,label...]`."""
    return [
        Entry(where, (path,), _labels(numbers[1:]))
        for where, path, numbers in _lines(file, "{path},{num_frames},{label}[,{label}...]", name, least=2, commas=True)
    ]


def mmaction_entries(file: Path) -> list[Entry]:
    """mmaction2's video lists: `file label [label...]`, or its JSON [{"filename": ..., "label": ...}]."""
    if begins_with(file, "["):
        form = '[{"filename": ..., "label": ...}, ...]'
        return [
            Entry(where, (item["filename"],), _labels(_listed(item["label"], where)))
            for where, item in json_items(file, form, "mmaction", {"filename": str, "label": (int, list)})
        ]
    return [
        Entry(where, (path,), _labels(numbers))
        for where, path, numbers in _lines(file, "{file} {label} [{label} ...]", "mmaction", least=1)
    ]


def frames_entries(file: Path, *, with_offset: bool) -> list[Entry]:
    """mmaction2's rawframe lists: `dir total label...`, or `dir start total label...` with an offset; or JSON."""
    if begins_with(file, "["):
        form = '[{"frame_dir": ..., "total_frames": ..., "label": ...}, ...]'
        kinds = {"frame_dir": str, "total_frames": int, "label": (int, list)} | ({"offset": int} if with_offset else {})
        return [
            Entry(where, (item["frame_dir"],), _labels(_listed(item["label"], where)), total=item["total_frames"],
                  offset=item["offset"] if with_offset else None)
            for where, item in json_items(file, form, "rawframes", kinds)
        ]  # fmt: skip
    form = "{dir} {start} {total} {label} [{label} ...]" if with_offset else "{dir} {total} {label} [{label} ...]"
    entries, first = [], 2 if with_offset else 1
    for where, path, numbers in _lines(file, form, "rawframes", least=first + 1):
        offset = numbers[0] if with_offset else None
        entries.append(Entry(where, (path,), _labels(numbers[first:]), total=numbers[first - 1], offset=offset))
    return entries


def begins_with(file: Path, mark: str) -> bool:
    return read_text(file).lstrip()[:1] == mark


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise ReskdError(f"{file}: annotations that can't be read ({what}). Give a file of text in UTF-8") from error


def read_json(file: Path, form: str, name: str) -> Any:
    text = read_text(file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise unlike(f"{file} ({error})", text.strip(), form, name) from error


def json_items(file: Path, form: str, name: str, kinds: dict[str, type | tuple]) -> Iterator[tuple[str, dict]]:
    """(where, object) of a JSON list of objects that have these fields."""
    items = read_json(file, form, name)
    if not isinstance(items, list) or not items:
        raise unlike(str(file), json.dumps(items), form, name)
    for i, item in enumerate(items):
        if not isinstance(item, dict) or not all(isinstance(item.get(field), kind) for field, kind in kinds.items()):
            raise unlike(f"{file}, entry {i}", json.dumps(item), form, name)
        yield f"{file}, entry {i}", item


def unlike(where: str, found: str, form: str, name: str) -> ReskdError:
    """The error of a file, or of a line, in another format than `name`'s."""
    shown = found.splitlines()[0][:SHOWN] if found.strip() else "nothing"
    return ReskdError(f"{where}: {shown!r} where `{form}` was expected, as in annotations of {name}. Mend it, or "
                      "choose the NAME of its format")  # fmt: skip


def _lines(
    file: Path, form: str, name: str, *, exactly: int | None = None, least: int = 0, commas: bool = False
) -> Iterator[tuple]:
    """(where, path, integers) of each line that isn't empty. `commas`: where these separate, `a 10,300,7` is `a 10`."""
    times = exactly or f"{least},"
    patterns = [re.compile(_LINE % (between, times)) for between in ((_COMMA, _ANY) if commas else (_ANY,))]
    count = 0
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        count, where = count + 1, f"{file}, line {number}"
        match = next(filter(None, (pattern.fullmatch(line.strip()) for pattern in patterns)), None)
        if not match:
            raise unlike(where, line.strip(), form, name)
        yield where, match[1], [int(n) for n in re.findall(r"-?[0-9]+", match[2])]
    if not count:
        raise unlike(str(file), "", form, name)


def _labels(numbers: list[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, numbers)))


def _listed(label: int | list, where: str) -> list[int]:
    labels = label if isinstance(label, list) else [label]
    wrong = next((v for v in labels if isinstance(v, bool) or not isinstance(v, int)), None)
    if wrong is not None:
        raise ReskdError(f"{where}: {wrong!r} is no label. Give integers")
    return labels
