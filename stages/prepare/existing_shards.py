"""The labels inside shards that others made, as video2dataset and its like write them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.shards.tar_scan import Sample, read_member, scan_tar

OURS = {"segment", "start", "frames", "decoder"}  # in the json of a part; others mean by a segment what they like
# Where a clip's label is kept, first choice first: its `.cls`, fields of its `.json` (video2dataset copies there
# whatever columns its user asks for; `label_names` is what `prepare` writes), its `.txt` where that is no caption.
FIELDS = ("cls", "label_names", "labels", "label", "class", "txt")


@dataclass(frozen=True)
class Survey:
    """The labels of tars: per field each label found, and the first clip that lacks the field."""

    clips: int = 0
    found: dict[str, dict[str, str]] = field(default_factory=dict)  # field -> label -> where it is first seen
    lacking: dict[str, str] = field(default_factory=dict)  # field -> where


def survey_shard(path: Path, text: bool) -> Survey:
    """Raises ReskdError as `scan_tar` does, and for a member that isn't what its extension says.

    `text`: the `.txt` is a class name; a caption otherwise, which is passed over.
    """
    samples, labels, _ = shard_labels(path, text)
    survey = Survey(len(samples))
    for sample, fields in zip(samples, labels, strict=True):
        where = f"{path}: clip {sample.key!r}"
        for name in FIELDS:
            if name in fields:
                known = survey.found.setdefault(name, {})
                known |= {label: where for label in fields[name] if label not in known}
            else:
                survey.lacking.setdefault(name, where)
    return survey


def merge_surveys(surveys: Iterable[Survey]) -> Survey:
    clips, found, lacking = 0, {}, {}
    for survey in surveys:
        clips += survey.clips
        lacking = survey.lacking | lacking
        for name, labels in survey.found.items():
            known = found.setdefault(name, {})
            known |= {label: where for label, where in labels.items() if label not in known}
    return Survey(clips, found, lacking)


def choose_field(survey: Survey) -> tuple[str | None, dict[str, str]]:
    """The field that labels the clips, and each label in it with where; None where nothing is labelled.

    Raises ReskdError where some clips have it and others don't: nobody can tell whether a label was lost.
    """
    name = next((name for name in FIELDS if name in survey.found), None)
    if name is None:
        return None, {}
    if name in survey.lacking:
        raise ReskdError(f"{survey.lacking[name]} has no label: others have it as {name!r}. Add it, empty (or null "
                         "in a json) for an unlabelled clip")  # fmt: skip
    return name, survey.found[name]


def shard_labels(
    path: Path, text: bool
) -> tuple[list[Sample], list[dict[str, tuple[str, ...]]], list[tuple[float, float] | None]]:
    """The clips of a tar; for each the labels in every field that it has (empty: said to be unlabelled), and from when
    to when (s) it is a part of its video, where `prepare` has written so.
    """
    samples, labels, parts = scan_tar(path), [], []
    with open(path, "rb") as file:
        for sample in samples:
            fields, part = {}, None
            for ext, member in sample.labels.items():
                if ext != "txt" or text:
                    value = _content(ext, read_member(file, member), where := f"{path}: member {member.name!r}")
                    fields |= _fields(ext, value, where)
                    part = _part(value, where) if ext == "json" and value.keys() >= OURS else part
            labels.append(fields)
            parts.append(part)
    return samples, labels, parts


def _content(ext: str, data: bytes, where: str) -> dict[str, Any]:
    try:
        content = data.decode("utf-8-sig").strip()
        value = json.loads(content) if ext == "json" else {ext: content}
    except ValueError as error:
        raise ReskdError(f"{where}: not {ext} ({error}). Write it anew, or remove it") from error
    if not isinstance(value, dict):
        raise ReskdError(f"{where}: not a JSON object. Write one, with the label as `label`")
    return value


def _fields(ext: str, value: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    allowed = [name for name in FIELDS if name not in ("cls", "txt")] if ext == "json" else [ext]
    return {name: _texts(value[name], where) for name in allowed if name in value}


def _part(value: dict[str, Any], where: str) -> tuple[float, float]:
    try:
        start, end = map(float, value["segment"])
    except (TypeError, ValueError) as error:
        raise ReskdError(f"{where}: segment {value['segment']!r}, where [start, end] was expected") from error
    if not 0 <= start < end:
        raise ReskdError(f"{where}: segment from {start:g} to {end:g} s. Mend it")
    return start, end


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None and v != ""]
    wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, (str, int))), None)
    if wrong is not None:
        raise ReskdError(
            f"{where}: {wrong!r} is no label. Give integers or class names, or null for an unlabelled clip"
        )
    return tuple(dict.fromkeys(str(v).strip() for v in values))
