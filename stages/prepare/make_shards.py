"""Makes one shard of a data set: packs videos into a tar, or indexes an existing tar."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import ShardEntry, keys_digest
from stages.prepare.clips import Clip, safe_keys
from stages.prepare.encode_frames import encode_task
from stages.prepare.existing_shards import shard_labels
from stages.prepare.folders import extension
from stages.prepare.probe_videos import Probe, crashed_probe, hash_task, probe_task
from stages.prepare.workers import Workers
from stages.shards.dataset import write_shard
from stages.shards.tar_scan import Sample

TOLERANCE = 1.0  # seconds: a part that ends so little after its video isn't reported, because times are rounded


@dataclass(frozen=True)
class Shard:
    """A finished shard. `entry` is None if no clip was readable; then there is no tar."""

    entry: ShardEntry | None
    rows: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]  # lines of quarantine.jsonl
    report: list[dict[str, Any]] = field(default_factory=list)  # lines of report.jsonl


def spread_clips(
    clips: Sequence[Clip], *, seed: int, per_shard: int, max_bytes: int, limit: int | None
) -> list[list[tuple[str, Clip]]]:
    """The (key, clip) pairs of each shard, in the order of sha256(seed, key), which no library's version changes.

    `limit`: take only the first clips of this order. They are a fair sample, and a larger limit takes them too.
    """
    keyed = list(zip(safe_keys([clip.identity for clip in clips]), clips, strict=True))
    shards, size = [], 0
    for key, clip in sorted(keyed, key=lambda item: hashlib.sha256(f"{seed}/{item[0]}".encode()).digest())[:limit]:
        size += clip.size or 0
        if not shards or len(shards[-1]) == per_shard or size > max_bytes:
            shards.append([])
            size = clip.size or 0
        shards[-1].append((key, clip))
    return shards


def pack_shard(
    path: Path,
    temporary: Path,
    clips: Sequence[tuple[str, Clip]],
    table: Mapping[str, int],
    workers: Workers,
    advance: Callable[[str | None], None],
) -> Shard:
    """Copies readable videos into the tar `path`, each beside a json of its labels and properties.

    The tar is written as `temporary` first. Pictures are encoded into files beside `temporary`, and then copied.
    `table`: label -> class number. `advance` is called for each clip, with the reason if it is unreadable, or None.
    """
    rows, quarantine, report = [], [], []
    files = {key: temporary.parent / "encoded" / f"{key}.mp4" if clip.frames else clip.path for key, clip in clips}
    (temporary.parent / "encoded").mkdir(exist_ok=True)
    tasks = (encode_task(clip, files[key]) if clip.frames else probe_task(clip.path) for key, clip in clips)

    def readable():
        for (key, clip), whole in zip(clips, workers.map(tasks, crashed_probe), strict=True):
            probe, start, remark = _cut_part(whole, clip.start, clip.end, clip.where)
            advance(probe.error)
            if probe.error:
                kind = "unreadable" if whole.error else "range"
                quarantine.append({"path": clip.name, "kind": kind, "reason": probe.error})
                continue
            if remark:
                report.append({"path": clip.name, "kind": "range", "key": key, "reason": remark})
            row = _row(key, extension(clip.identity), probe, [table[label] for label in clip.labels], start)
            rows.append(row)
            yield key, row["ext"], _read_unchanged(files[key], probe), _properties(row, clip)
            if clip.frames:
                files[key].unlink()

    samples, size, digest = write_shard(path, temporary, readable())
    for row, sample in zip(rows, samples, strict=True):
        assert row["key"] == sample.key
        row |= _place(sample)
    entry = ShardEntry(path.name, len(rows), size, digest, keys_digest([row["key"] for row in rows])) if rows else None
    return Shard(entry, rows, quarantine, report)


def index_shard(
    path: Path,
    name: str,
    field: str | None,
    table: Mapping[str, int],
    workers: Workers,
    advance: Callable[[str | None], None],
) -> Shard:
    """The rows of an existing tar, labelled by `field`. An unreadable video is a row with an `error`; what has no video is
    no row, but a line of quarantine.jsonl.

    `table`: label -> class number. `advance` is called for each clip, with the reason if it is unreadable, or None.
    """
    content, labels, parts = shard_labels(path, field == "txt")
    videos = [(sample.video.offset, sample.video.size) for sample in content.samples]
    results = workers.map([hash_task(path), *(probe_task(path, *video) for video in videos)], crashed_probe)
    digest, rows, quarantine, report = next(results), [], [], []
    for sample, fields, part, whole in zip(content.samples, labels, parts, results, strict=True):
        probe, start, remark = _cut_part(whole, *(part or (None, None)), sample.video.name)
        advance(probe.error)
        path_field = {"path": f"{name}/{sample.video.name}"}
        numbers = [table[label] for label in (fields[field] if field else ())]
        rows.append(_row(sample.key, sample.ext, probe, numbers, start) | _place(sample))
        if probe.error:
            kind = "unreadable" if whole.error else "range"
            line = path_field | {"kind": kind, "reason": probe.error, "shard": name, "row": len(rows) - 1}
            quarantine.append(line)
        if remark:
            report.append(path_field | {"kind": "range", "key": sample.key, "reason": remark})
    for members in content.without_video:
        reason = "no video beside it" + (f", but {', '.join(members[1:])}" if members[1:] else "")
        quarantine.append({"path": f"{name}/{members[0]}", "kind": "no video", "reason": reason, "shard": name})
        advance(reason)
    keys = keys_digest([row["key"] for row in rows])
    return Shard(ShardEntry(name, len(rows), path.stat().st_size, digest, keys), rows, quarantine, report)


def _cut_part(probe: Probe, start: float | None, end: float | None, where: str) -> tuple[Probe, int, str | None]:
    """The part of a video from `start` to `end` (seconds): its Probe, its first frame, and a remark if it is shorter.

    The container's average rate turns times into frames: frame round(t * fps) is at t seconds.
    """
    if start is None or end is None or probe.info is None:
        return probe, 0, None
    info, times = probe.info, f"{start:g} to {end:g} s"
    first, last = round(start * info.fps), min(round(end * info.fps), info.frames)
    if start >= info.duration or first >= info.frames or info.fps <= 0:
        fault = f"begins after the end of the video, at {info.duration:.2f} s" if info.fps > 0 else "has no frame rate"
        return replace(probe, info=None, error=f"the part from {times} {fault} ({where})"), 0, None
    part = replace(info, frames=max(1, last - first), duration=min(end, info.duration) - start)
    remark = f"the part from {times} ends with its video, at {info.duration:.2f} s ({where})"
    return replace(probe, info=part), first, remark if end > info.duration + TOLERANCE else None


def _row(key: str, ext: str, probe: Probe, labels: Sequence[int], start: int = 0) -> dict[str, Any]:
    info = asdict(probe.info) if probe.info else dict.fromkeys(("frames", "fps", "width", "height", "duration"), 0)
    info = {"decoder": "", "fallback": None} | info | {"start": start}
    labels = list(dict.fromkeys(labels))  # two forms of a name are one class
    return {"key": key, "ext": ext, "sha256": probe.sha256, **info, "labels": labels, "error": probe.error}


def _properties(row: Mapping[str, Any], clip: Clip) -> dict[str, Any]:
    """The content of the json beside a video in its tar."""
    properties = {name: row[name] for name in row if name not in ("key", "ext", "error")}
    properties |= {"label_names": clip.labels, "source": clip.name}
    if clip.start is not None:
        properties["segment"] = [clip.start, clip.end]
    if clip.frames is not None:
        properties["pictures"] = asdict(clip.frames)
    return properties


def _place(sample: Sample) -> dict[str, int]:
    return {"offset": sample.video.offset, "size": sample.video.size, "header": sample.video.header}


def _read_unchanged(path: Path, probe: Probe) -> bytes:
    """The bytes of a video. Raises ReskdError if they aren't those that were probed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReskdError(f"{path}: can't be read any more ({error.strerror}). Restore it and run again") from error
    if hashlib.sha256(data).hexdigest() != probe.sha256:
        raise ReskdError(f"{path}: was changed while `prepare` was reading it. Run again when nothing writes to it")
    return data
