"""`pipeline.py inspect-cache`: the contents of a cache, its size, and the views of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from cache.contents import find_clip, summary
from cache.errors import ReskdError
from cache.group import load_group, load_manifest
from cache.manifest import Manifest
from cache.reader import CacheReader, check_join
from cache.teacher_time import teacher_time_of
from cache.view import BLOCK, View
from stages.remote.url_path import Location
from stages.runtime.terminal import Terminal
from stages.shards.dataset import Dataset, open_dataset
from stages.teacher.audit import teacher_accuracy
from stages.teacher.clip_sheet import clip_sheet
from stages.teacher.encodings import describe_error

TOP_CLASSES = 5  # shown for each view


def inspect_cache(
    path: Location,
    *,
    data: Location | None = None,
    clip: str | None = None,
    png: Path | None = None,
) -> dict:
    """Print the contents and the size of a cache; returns them.

    {"identity", "views", "finished_views", "shards", "finished_shards", "clips", "clip_views": committed, "bytes": {"total",
    "by_array", "of_clip_view": by array, "constants", "metadata", "other"}, "notes", "quarantine": {"clips", "first"},
    "top1": of the teacher in percent, None without `data`, or where nothing is labelled or finished, "clip": as `clip_views`
    returns it, or None}.
    `data`: the data set that the cache was made of. `png`: a picture of the clip's views, which needs `data`.
    Raises ReskdError for an unknown clip, for a key that is in two shards, and for a data set of other clips.
    """
    if png is not None and (clip is None or data is None):
        raise ReskdError("--png draws the views of one clip: give --clip KEY, and --data DATASET, which has the video")
    manifest, dataset = load_manifest(path), open_dataset(data) if data is not None else None
    if dataset is not None:
        check_join(manifest, dataset.shards)
    place = find_clip(path, manifest, clip) if clip is not None else None  # shard, row
    result = summary(path, manifest)
    result["top1"] = _accuracy(path, manifest, dataset) if dataset is not None else None
    result["clip"] = clip_views(path, manifest, *place) if place is not None else None
    if png is not None:
        _draw(png, path, dataset, result["clip"], manifest.identity.teacher["size"])
    _show(path, result)
    return result


def _accuracy(path: Location, manifest: Manifest, data: Dataset) -> float | None:
    if tuple(data.classes) != tuple(manifest.identity.classes):
        raise ReskdError(f"{data.path} has other classes than {path}: give the data set that the cache was made of")
    finished = {entry.name for entry in manifest.identity.shards[: manifest.finalised_shards]}
    if manifest.finalised < 1 or any(entry.name not in finished for entry in data.shards):
        return None
    reader = CacheReader(path, tuple(manifest.identity.targets))
    return teacher_accuracy(data, replace(manifest, views=manifest.finalised), reader)


def clip_views(path: Location, manifest: Manifest, shard: str, row: int) -> dict:
    """{"shard", "row", "key", "quarantine": reason or None, "views": [{"frames", "box", "flip", "top": [[class, percent]]}]}.

    `top` is empty where the cache has maps alone. A view without targets is None.
    """
    targets = [name for name in manifest.identity.targets if name == "logits"]
    group, reader, classes = load_group(path, shard), CacheReader(path, targets), manifest.identity.classes
    views = []
    for number in range(group["views"]):
        block, i = reader.block(shard, number, row // BLOCK), row % BLOCK
        if not block.valid[i]:
            views.append(None)
            continue
        view = block.view_of(i)
        top = [] if block.logits is None else _most_probable(block.logits[i].astype(np.float64), classes)
        views.append({"frames": view.frames.tolist(), "box": view.box.tolist(), "flip": view.flip, "top": top})
    key = group["keys"][row]
    return {"shard": shard, "row": row, "key": key, "quarantine": group["quarantine"].get(key), "views": views}


def _most_probable(logits: np.ndarray, classes: Sequence[str]) -> list:
    """[[class, percent]] of the first five classes."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [[classes[c], 100 * float(shares[c])] for c in np.argsort(-shares, kind="stable")[:TOP_CLASSES]]


def _draw(png: Path, path: Location, data: Dataset, clip: dict, size: int) -> None:
    stored = [(number, view) for number, view in enumerate(clip["views"]) if view is not None]
    if not stored:
        raise ReskdError(
            f"{path}: clip {clip['key']!r} is in quarantine ({clip['quarantine']}): it has nothing to draw"
        )
    if clip["shard"] not in {entry.name for entry in data.shards}:
        raise ReskdError(f"{data.path} has no shard {clip['shard']}: give the data set that the cache was made of")
    views = [View(np.array(v["frames"], np.int32), np.array(v["box"], np.float32), v["flip"]) for _, v in stored]
    titles = [f"view {number}: " + _format_top(view["top"]) for number, view in stored]
    row = data.rows(clip["shard"])[clip["row"]]
    truth = ", ".join(data.classes[label] for label in row.labels) or "unlabelled"
    clip_sheet(png, data, (clip["shard"], clip["row"]), views, titles, f"{row.key}: {truth}", size)


def _format_top(top: list) -> str:
    return ", ".join(f"{name} {share:.1f} %" for name, share in top)


def _show(path: Location, result: dict) -> None:
    console, identity, sizes = Terminal(), result["identity"], result["bytes"]

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(str(path))
    teacher = identity["teacher"]
    model = ", ".join(
        f"{k} {v}" for k, v in teacher["model"].items() if not isinstance(v, (dict, list)) and v is not None
    )
    say(f"teacher   {model}; weights {teacher['weights_sha256'][:12]}, {teacher['size']} px, "
        + ", ".join(f"{k} {v}" for k, v in teacher.items() if k not in ("model", "weights_sha256", "size")))  # fmt: skip
    say(f"decoder   {identity['decoder']}")
    say("policy    " + ", ".join(f"{k} {v}" for k, v in identity["policy"].items()))
    say(f"classes   {result['classes']}")
    for target, settings in identity["targets"].items():
        say(f"{target:<9} " + ", ".join(f"{k} {v!s:.48}" for k, v in settings.items() if v is not None))
    if "logits" not in identity["targets"]:
        say("          maps alone: the teacher's classifier isn't used")
    say(f"views     {result['views']} planned, {result['finished_views']} finished on {result['finished_shards']} of "
        f"{result['shards']} shards; {result['clips']} clips, {result['clip_views']} clip·views stored")  # fmt: skip
    table = Table("array", "MB", "bytes a clip·view")
    for name, size in sizes["by_array"].items():
        table.add_row(name, f"{size / 1e6:.3f}", f"{sizes['of_clip_view'].get(name, 0):.1f}")
    for name in ("constants", "metadata", "other"):
        table.add_row(f"({name})", f"{sizes[name] / 1e6:.3f}", "")
    table.add_row("total", f"{sizes['total'] / 1e6:.3f}", f"{sizes['total'] / max(1, result['clip_views']):.1f}")
    console.print(table)
    if (teacher_time := teacher_time_of(path, result["notes"])) is not None:
        say(str(teacher_time))
    if "features" in result["notes"]:
        say(f"features, {describe_error(result['notes']['features'])}")
    say(
        f"quarantine: {result['quarantine']['clips']} clips"
        + "".join(f"\n  {clip}" for clip in result["quarantine"]["first"])
    )
    if result["top1"] is not None:
        say(f"the teacher's top-1 on its cached views: {result['top1']:.2f} %")
    if result["clip"] is not None:
        _show_clip(result["clip"], say)


def _show_clip(clip: dict, say: Callable[[str], None]) -> None:
    say(f"clip {clip['key']}, shard {clip['shard']}, row {clip['row']}"
        + (f", in quarantine: {clip['quarantine']}" if clip["quarantine"] else ""))  # fmt: skip
    for number, view in enumerate(clip["views"]):
        if view is None:
            say(f"  view {number}: no targets")
            continue
        box = ", ".join(f"{value:.3f}" for value in view["box"])
        say(f"  view {number}: frames {view['frames']}, top, left, height, width {box}{', mirrored' * view['flip']}")
        say(f"    {_format_top(view['top'])}")
