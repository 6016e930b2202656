"""The annotations of Kinetics, Mini-Kinetics, Something-Something v2, ActivityNet v1.3, FCVID and mmaction2, each as
its publishers ship it -> the clips of a data set.
"""

import csv
import io
import math
from pathlib import Path

from cache.errors import ReskdError
from stages.prepare.listing import Listing, find_clips
from stages.prepare.lists import (
    Entry,
    begins_with,
    frame_count_entries,
    json_items,
    minik_entries,
    mmaction_entries,
    read_json,
    read_text,
    unlike,
)

NAMES = ("kinetics", "minik", "sthv2", "actnet", "fcvid", "mmaction", "rawframes")
SPLITS = {  # how publishers call them
    "train": ("train", "training"),
    "val": ("val", "validate", "validation"),
    "test": ("test", "testing"),
}
# Columns of the two Kinetics CSVs in circulation: the publishers' own, and that of the first release's tools.
COLUMNS = {
    "label": ("label", "label_name"),
    "id": ("youtube_id", "video_id"),
    "start": ("time_start", "start_time"),
    "end": ("time_end", "end_time"),
    "split": ("split",),
}


def list_published(name: str, file: Path, videos: Path, skip: Path, split: str | None) -> Listing:
    """The clips that a publisher's file lists, found below the folder `videos`; `name` is one of NAMES but rawframes.

    Raises ReskdError for a file of another format, and a `split` that is missing or that its format doesn't have.
    """
    if name == "kinetics":
        entries = kinetics_entries(file, split)
    elif name == "actnet" and begins_with(file, "{"):
        entries = actnet_entries(file, split)
    else:
        if split is not None:
            raise ReskdError(f"--split {split}: {file} lists one split. Leave it out")
        entries = _split_file(name, file)
    listed_in = file.name if split is None else f"{file.name} as {split}"
    return find_clips(entries, videos, skip, listed_in, names=name in ("kinetics", "sthv2"))


def kinetics_entries(file: Path, split: str | None = None) -> list[Entry]:
    """CSV with a header: label, youtube_id, time_start, time_end, split; no label or an empty one: unlabelled."""
    form = "label,youtube_id,time_start,time_end[,split]"
    try:
        lines = list(csv.reader(io.StringIO(read_text(file), newline="")))
    except csv.Error as error:
        raise ReskdError(
            f"{file}: not a readable CSV ({error}). Mend it, a quote that is never closed for one"
        ) from error
    header = [cell.strip().lower().replace("-", "_").replace(" ", "_") for cell in lines[0]] if lines else []
    places = {c: next((header.index(n) for n in names if n in header), None) for c, names in COLUMNS.items()}
    if any(places[column] is None for column in ("id", "start", "end")):
        raise unlike(f"{file}, line 1", ",".join(lines[0]) if lines else "", form, "kinetics")
    entries, splits = [], set()
    for number, cells in enumerate(lines[1:], 2):
        where = f"{file}, line {number}"
        if not any(cell.strip() for cell in cells):
            continue
        row = {c: cells[p].strip() if p is not None and p < len(cells) else "" for c, p in places.items()}
        start, end = _second(row["start"]), _second(row["end"])
        if not row["id"] or start is None or end is None:
            raise unlike(where, ",".join(cells), form, "kinetics")
        splits.add(row["split"])
        if split is None or row["split"].lower() in SPLITS[split]:
            entries.append(_kinetics_entry(where, row["id"], row["label"], start, end))
    if split is None and len(splits) > 1:
        raise ReskdError(f"{file}: holds the splits {', '.join(sorted(splits))}. Choose one with --split")
    if not entries:
        there = ", ".join(sorted(filter(None, splits))) or "none, leave --split out"
        raise ReskdError(f"{file}: no clip in it" + (f" of the split {split}; it names {there}" if splits else ""))
    return entries


def sthv2_entries(file: Path) -> list[Entry]:
    """JSON [{id, template, ...}]: the template is the class, its brackets taken away; none: unlabelled."""
    form, entries = '[{"id": "...", "template": "..."}, ...]', []
    for where, item in json_items(file, form, "sthv2", {"id": str}):
        template = item.get("template") or ""
        if not isinstance(template, str):
            raise unlike(where, str(item), form, "sthv2")
        entries.append(Entry(where, (item["id"],), (template.translate(_NO_BRACKETS),) if template else ()))
    return entries


def actnet_entries(file: Path, split: str | None) -> list[Entry]:
    """JSON {database: {id: {subset, annotations: [{label}, ...]}}}: untrimmed videos, with all of their labels."""
    form = '{"database": {"<id>": {"subset": ..., "annotations": [{"label": ...}, ...]}, ...}}'
    content = read_json(file, form, "actnet")
    database = content.get("database")
    if not isinstance(database, dict):
        raise unlike(str(file), ", ".join(content), form, "actnet")
    if split is None:
        raise ReskdError(f"{file}: holds training, validation and testing. Choose with --split train, val or test")
    entries = []
    for name, item in database.items():
        where = f"{file}, {name}"
        try:
            subset, labels = item["subset"], tuple(dict.fromkeys(a["label"] for a in item["annotations"]))
        except (KeyError, TypeError) as error:
            raise unlike(where, str(item), form, "actnet") from error
        if not all(isinstance(text, str) and text for text in (subset, *labels)):
            raise unlike(where, str(item), form, "actnet")
        if subset in SPLITS[split]:
            entries.append(Entry(where, (f"v_{name}", name), labels))
    if not entries:
        raise ReskdError(f"{file}: no video of the split {split} in it")
    return entries


_NO_BRACKETS = str.maketrans("", "", "[]")


def _split_file(name: str, file: Path) -> list[Entry]:
    """Formats of one file a split."""
    if name == "sthv2":
        return sthv2_entries(file)
    if name == "minik":
        return minik_entries(file)
    return mmaction_entries(file) if name == "mmaction" else frame_count_entries(file, name)


def _kinetics_entry(where: str, video: str, label: str, start: float, end: float) -> Entry:
    """The clip as downloaders cut and name it, flat or in class folders, with blanks or underscores in their names."""
    cut = f"{video}_{int(start):06d}_{int(end):06d}"
    folders = dict.fromkeys((label, label.replace(" ", "_"))) if label else ()
    return Entry(where, (cut, *(f"{f}/{cut}" for f in folders)), (label,) if label else (), video, start, end)


def _second(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
