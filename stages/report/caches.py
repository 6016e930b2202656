"""Caches and data sets as the report shows them: what they hold, what the teacher cost, what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.contents import summary
from cache.errors import ReskdError
from cache.group import load_group, load_manifest
from cache.manifest import Manifest
from cache.teacher_time import TeacherTime, teacher_time_of
from stages.remote.url_path import Location
from stages.shards.dataset import Dataset, open_dataset

LeftOut = tuple[tuple[str, str], ...]  # (clip, reason)


@dataclass(frozen=True)
class CacheFigures:
    """`error`: as `encoding_error` measured it when the cache was made; None without stored maps."""

    name: str
    path: Location
    teacher: str
    size: int  # px of the teacher
    clips: int
    views: int  # finished
    planned: int
    clip_views: int  # committed
    bytes: int
    map_bytes: float | None  # of a clip·view's maps
    maps: str  # how maps are stored, in words; "" if they aren't
    error: Mapping[str, float] | None
    time: TeacherTime | None
    left_out: LeftOut


@dataclass(frozen=True)
class DataFigures:
    """A data set that `prepare` made."""

    name: str
    clips: int
    shards: int
    classes: int
    left_out: LeftOut


def read_cache(path: Location, name: str) -> CacheFigures:
    """Raises ReskdError if the folder is no cache, or a damaged one."""
    manifest = load_manifest(path)
    what, identity = summary(path, manifest), manifest.identity
    features = identity.targets.get("features")
    error = manifest.notes.get("features")
    model = identity.teacher.get("model", {})
    return CacheFigures(
        name=name,
        path=path,
        teacher=" ".join(str(model[key]) for key in ("arch", "backbone") if model.get(key)),
        size=int(identity.teacher["size"]),
        clips=what["clips"],
        views=what["finished_views"],
        planned=what["views"],
        clip_views=what["clip_views"],
        bytes=what["bytes"]["total"],
        map_bytes=what["bytes"]["of_clip_view"].get("features"),
        maps=_maps(features) if features else "",
        error={key: float(value) for key, value in error.items()} if isinstance(error, dict) else None,
        time=teacher_time_of(path, manifest.notes),
        left_out=_left_out_of_cache(path, manifest),
    )


def _maps(features: Mapping[str, Any]) -> str:
    return f"{features['codec']}, {' × '.join(map(str, features['grid']))} positions, {features['width']} channels"


def _left_out_of_cache(path: Location, manifest: Manifest) -> LeftOut:
    found = []
    for shard, rows in manifest.quarantine.items():
        try:
            group = load_group(path, shard)
        except ReskdError:
            group = None
        keys = group["keys"] if group else []
        found += [(f"{shard}/{keys[row] if row < len(keys) else row}", reason) for row, reason in rows.items()]
    return tuple(found)


def read_data_set(path: Location, name: str) -> DataFigures:
    """Raises ReskdError if the folder is no data set, or a damaged one."""
    data = open_dataset(path)
    clips = sum(entry.clips for entry in data.shards)
    return DataFigures(name, clips, len(data.shards), len(data.classes), _left_out_of_data(data))


def _left_out_of_data(data: Dataset) -> LeftOut:
    return tuple((f"{shard}/{data.rows(shard)[row].key}", reason)
                 for shard, rows in data.quarantine.items() for row, reason in rows.items())  # fmt: skip
