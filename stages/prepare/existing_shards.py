"""The labels in tar shards that other programs made, such as video2dataset."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.shards.tar_scan import TarContent, read_member, scan_tar

# The keys that `prepare` writes into the json of a part of a video. A "segment" without the others may mean anything.
PART_KEYS = {"segment", "start", "frames", "decoder"}
# Where a clip's label may be, the preferred place first: its `.cls`; fields of its `.json` (`prepare` writes
# `label_names`, video2dataset copies any columns that its user names); its `.txt`, unless that is a caption.
FIELDS = ("cls", "label_names", "labels", "label", "class", "txt")


@dataclass(frozen=True)
class Survey:
    """The labels of tars: each label of each field, and the first clip that lacks the field."""

    clips: int = 0
    without_video: int = 0  # keys
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # field -> label -> its first place
    lacking: dict[str, str] = field(default_factory=dict)  # field -> the first place without it


def survey_shard(path: Path, text: bool, called: str | None = None) -> Survey:
    """The labels of one tar. `text`: a `.txt` is a class name; otherwise it is a caption, which is ignored.

    `called`: how messages name the tar, if `path` is a copy of it.

    Raises ReskdError as `scan_tar` does, and for a member that isn't what its extension says.
    """
    content, labels, _ = shard_labels(path, text)
    survey = Survey(len(content.samples), len(content.without_video))
    for sample, fields in zip(content.samples, labels, strict=True):
        where = f"{called or path}: clip {sample.key!r}"
        for name in FIELDS:
            if name in fields:
                known = survey.labels.setdefault(name, {})
                known |= {label: where for label in fields[name] if label not in known}
            else:
                survey.lacking.setdefault(name, where)
    return survey


def merge_surveys(surveys: Iterable[Survey]) -> Survey:
    """The survey of all tars; the first place of a label is the first in the order of `surveys`."""
    clips, without_video, labels, lacking = 0, 0, {}, {}
    for survey in surveys:
        clips, without_video = clips + survey.clips, without_video + survey.without_video
        lacking = survey.lacking | lacking
        for name, places in survey.labels.items():
            known = labels.setdefault(name, {})
            known |= {label: where for label, where in places.items() if label not in known}
    return Survey(clips, without_video, labels, lacking)


def choose_field(survey: Survey) -> tuple[str | None, dict[str, str]]:
    """The field that labels the clips, and label -> first place; (None, {}) if nothing is labelled.

    Raises ReskdError if only some clips have the field: a missing label may be a lost one.
    """
    name = next((name for name in FIELDS if name in survey.labels), None)
    if name is None:
        return None, {}
    if name in survey.lacking:
        raise ReskdError(f"{survey.lacking[name]} has no label: others have it as {name!r}. Add a label; an empty one "
                         "(null in a json) for an unlabelled clip")  # fmt: skip
    return name, survey.labels[name]


def shard_labels(
    path: Path, text: bool
) -> tuple[TarContent, list[dict[str, tuple[str, ...]]], list[tuple[float, float] | None]]:
    """The content of a tar. For each clip: the labels in every field that it has (empty: an unlabelled clip); and its
    start and end in its video, in seconds, if `prepare` wrote that it is a part of one.
    """
    content, all_fields, parts = scan_tar(path), [], []
    with open(path, "rb") as file:
        for sample in content.samples:
            fields, part = {}, None
            for ext, member in sample.labels.items():
                if ext != "txt" or text:
                    value = _content(ext, read_member(file, member), where := f"{path}: member {member.name!r}")
                    fields |= _labels_by_field(ext, value, where)
                    part = _part_times(value, where) if ext == "json" and value.keys() >= PART_KEYS else part
            all_fields.append(fields)
            parts.append(part)
    return content, all_fields, parts


def _content(ext: str, data: bytes, where: str) -> dict[str, Any]:
    try:
        content = data.decode("utf-8-sig").strip()
        value = json.loads(content) if ext == "json" else {ext: content}
    except ValueError as error:
        raise ReskdError(f"{where}: not {ext} ({error}). Write it again, or remove it") from error
    if not isinstance(value, dict):
        raise ReskdError(f"{where}: not a JSON object. Write one, with the label as `label`")
    return value


def _labels_by_field(ext: str, value: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    allowed = [name for name in FIELDS if name not in ("cls", "txt")] if ext == "json" else [ext]
    return {name: _label_texts(value[name], where) for name in allowed if name in value}


def _part_times(value: dict[str, Any], where: str) -> tuple[float, float]:
    try:
        start, end = map(float, value["segment"])
    except (TypeError, ValueError) as error:
        raise ReskdError(f"{where}: segment {value['segment']!r}, where [start, end] was expected") from error
    if not 0 <= start < end:
        raise ReskdError(f"{where}: segment from {start:g} to {end:g} s. Correct it")
    return start, end


def _label_texts(value: Any, where: str) -> tuple[str, ...]:
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None and v != ""]
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]  # JSON's 1.0 is 1
    wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, (str, int))), None)
    if wrong is not None:
        raise ReskdError(
            f"{where}: {wrong!r} is no label. Give integers or class names, or null for an unlabelled clip"
        )
    return tuple(dict.fromkeys(str(v).strip() for v in values))
