"""Published annotations -> the clips of a data set: Kinetics, Mini-Kinetics, Something-Something v2, ActivityNet v1.3,
FCVID and mmaction2, each as its publishers ship it.
"""

import csv
import io
import math
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.annotation_files import (
    Annotation,
    begins_with,
    frame_count_annotations,
    json_items,
    minik_annotations,
    mmaction_annotations,
    read_json,
    read_text,
    wrong_format,
)
from stages.prepare.clip_list import ClipList, find_clips

NAMES = ("kinetics", "minik", "sthv2", "actnet", "fcvid", "mmaction", "rawframes")
SPLITS = {  # the names that publishers give them
    "train": ("train", "training"),
    "val": ("val", "validate", "validation"),
    "test": ("test", "testing"),
}
# Columns of the two Kinetics CSVs in circulation: the publishers' own, and the one of the first release's tools.
COLUMNS = {
    "label": ("label", "label_name"),
    "id": ("youtube_id", "video_id"),
    "start": ("time_start", "start_time"),
    "end": ("time_end", "end_time"),
    "split": ("split",),
}
_NO_BRACKETS = str.maketrans("", "", "[]")


def list_published(name: str, file: Path, videos: Path, skip: Path, split: str | None) -> ClipList:
    """The clips that a publisher's file lists, found below the folder `videos`. `name`: one of NAMES, not rawframes.

    Raises ReskdError for a file of another format, for a missing `split`, and for a `split` that the format doesn't have.
    """
    if name == "kinetics":
        annotations = kinetics_annotations(file, split)
    elif name == "actnet" and begins_with(file, "{"):
        annotations = actnet_annotations(file, split)
    else:
        if split is not None:
            raise ReskdError(f"--split {split}: {file} lists one split. Leave --split out")
        annotations = _read_one_split(name, file)
    listed_in = file.name if split is None else f"{file.name} as {split}"
    return find_clips(annotations, videos, skip, listed_in, labels_are_names=name in ("kinetics", "sthv2"))


def kinetics_annotations(file: Path, split: str | None = None) -> list[Annotation]:
    """CSV with a header: label, youtube_id, time_start, time_end, split. Without a label a clip is unlabelled."""
    form = "label,youtube_id,time_start,time_end[,split]"
    try:
        lines = list(csv.reader(io.StringIO(read_text(file), newline="")))
    except csv.Error as error:
        raise ReskdError(
            f"{file}: not a readable CSV ({error}). Correct it; perhaps a quotation mark is never closed"
        ) from error
    header = [cell.strip().lower().replace("-", "_").replace(" ", "_") for cell in lines[0]] if lines else []
    positions = {c: next((header.index(n) for n in names if n in header), None) for c, names in COLUMNS.items()}
    if any(positions[column] is None for column in ("id", "start", "end")):
        raise wrong_format(f"{file}, line 1", ",".join(lines[0]) if lines else "", form, "kinetics")
    annotations, splits = [], set()
    for number, cells in enumerate(lines[1:], 2):
        where = f"{file}, line {number}"
        if not any(cell.strip() for cell in cells):
            continue
        row = {c: cells[p].strip() if p is not None and p < len(cells) else "" for c, p in positions.items()}
        start, end = _seconds(row["start"]), _seconds(row["end"])
        if not row["id"] or start is None or end is None:
            raise wrong_format(where, ",".join(cells), form, "kinetics")
        splits.add(row["split"])
        if split is None or row["split"].lower() in SPLITS[split]:
            annotations.append(_kinetics_annotation(where, row["id"], row["label"], start, end))
    if split is None and len(splits) > 1:
        raise ReskdError(f"{file}: holds the splits {', '.join(sorted(splits))}. Choose one with --split")
    if not annotations:
        names = ", ".join(sorted(filter(None, splits))) or "none, leave --split out"
        raise ReskdError(f"{file}: no clip in it" + (f" of the split {split}; it names {names}" if splits else ""))
    return annotations


def sthv2_annotations(file: Path) -> list[Annotation]:
    """JSON [{id, template, ...}]. The template without its brackets is the class; without one a clip is unlabelled."""
    form, annotations = '[{"id": "...", "template": "..."}, ...]', []
    for where, item in json_items(file, form, "sthv2", {"id": str}):
        template = item.get("template") or ""
        if not isinstance(template, str):
            raise wrong_format(where, str(item), form, "sthv2")
        labels = (template.translate(_NO_BRACKETS),) if template else ()
        annotations.append(Annotation(where, (item["id"],), labels))
    return annotations


def actnet_annotations(file: Path, split: str | None) -> list[Annotation]:
    """JSON {database: {id: {subset, annotations: [{label}, ...]}}}: untrimmed videos, each with all its labels."""
    form = '{"database": {"<id>": {"subset": ..., "annotations": [{"label": ...}, ...]}, ...}}'
    content = read_json(file, form, "actnet")
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise wrong_format(
            str(file), ", ".join(content) if isinstance(content, dict) else read_text(file), form, "actnet"
        )
    if split is None:
        raise ReskdError(f"{file}: holds training, validation and testing. Choose with --split train, val or test")
    annotations = []
    for name, item in database.items():
        where = f"{file}, {name}"
        try:
            subset, labels = item["subset"], tuple(dict.fromkeys(a["label"] for a in item["annotations"]))
        except (KeyError, TypeError) as error:
            raise wrong_format(where, str(item), form, "actnet") from error
        if not all(isinstance(text, str) and text for text in (subset, *labels)):
            raise wrong_format(where, str(item), form, "actnet")
        if subset in SPLITS[split]:
            annotations.append(Annotation(where, (f"v_{name}", name), labels))
    if not annotations:
        raise ReskdError(f"{file}: no video of the split {split} in it")
    return annotations


def _read_one_split(name: str, file: Path) -> list[Annotation]:
    """The formats that have one file for each split."""
    if name == "sthv2":
        return sthv2_annotations(file)
    if name == "minik":
        return minik_annotations(file)
    return mmaction_annotations(file) if name == "mmaction" else frame_count_annotations(file, name)


def _kinetics_annotation(where: str, video: str, label: str, start: float, end: float) -> Annotation:
    """Downloaders cut the clip and name it by its times. It lies in one folder with all clips, or in a class folder,
    whose name has blanks or underscores.
    """
    cut = f"{video}_{int(start):06d}_{int(end):06d}"
    folders = dict.fromkeys((label, label.replace(" ", "_"))) if label else ()
    return Annotation(where, (cut, *(f"{f}/{cut}" for f in folders)), (label,) if label else (), video, start, end)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
