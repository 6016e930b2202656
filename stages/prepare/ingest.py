"""One shard of a data set, from annotated videos or from a foreign tar: its rows, and what was unreadable."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import ShardEntry, keys_digest
from stages.prepare.annotations import Clip, extension, safe_keys
from stages.prepare.existing_shards import shard_labels
from stages.prepare.probing import Probe, Prober, crashed_probe, hash_task, probe_task
from stages.prepare.raw_frames import encode_task
from stages.shards.dataset import write_shard
from stages.shards.tar_scan import Sample

BEYOND = 1.0  # seconds by which a part may end after its video without a word: times are rounded to seconds


@dataclass(frozen=True)
class Shard:
    """`entry` is None where no clip was readable, and no tar written."""

    entry: ShardEntry | None
    rows: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]  # path, kind, reason
    report: list[dict[str, Any]] = field(default_factory=list)


def spread_clips(
    clips: Sequence[Clip], *, seed: int, per_shard: int, max_bytes: int, limit: int | None
) -> list[list[tuple[str, Clip]]]:
    """(key, clip) of each shard. The order is that of sha256(seed, key): the same everywhere, whatever the library.
    `limit` takes the first so many of it: a fair sample, and one that a larger limit holds too.
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
    prober: Prober,
    advance: Callable[[str | None], None],
) -> Shard:
    """Copies readable videos into the tar `path`, each beside a json of its labels and properties; pictures are
    encoded, in files beside `temporary` until they are copied.

    `advance` is called for each clip, with the reason where it is unreadable.
    """
    rows, quarantine, report = [], [], []
    files = {key: temporary.parent / "encoded" / f"{key}.mp4" if clip.frames else clip.path for key, clip in clips}
    (temporary.parent / "encoded").mkdir(exist_ok=True)
    tasks = (encode_task(clip, files[key]) if clip.frames else probe_task(clip.path) for key, clip in clips)

    def readable():
        for (key, clip), whole in zip(clips, prober.map(tasks, crashed_probe), strict=True):
            probe, start, cut = _part(whole, clip.start, clip.end, clip.where)
            advance(probe.error)
            if probe.error:
                kind = "unreadable" if whole.error else "range"
                quarantine.append({"path": clip.name, "kind": kind, "reason": probe.error})
                continue
            if cut:
                report.append({"path": clip.name, "kind": "range", "key": key, "reason": cut})
            row = _row(key, extension(clip.identity), probe, [table[label] for label in clip.labels], start)
            rows.append(row)
            yield key, row["ext"], _copy(files[key], probe), _properties(row, clip)
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
    prober: Prober,
    advance: Callable[[str | None], None],
) -> Shard:
    """The rows of a foreign tar, labelled by `field`; its unreadable videos are rows with an `error`."""
    samples, labels, parts = shard_labels(path, field == "txt")
    videos = [(sample.video.offset, sample.video.size) for sample in samples]
    results = prober.map([hash_task(path), *(probe_task(path, *video) for video in videos)], crashed_probe)
    digest, rows, quarantine, report = next(results), [], [], []
    for sample, fields, part, whole in zip(samples, labels, parts, results, strict=True):
        probe, start, cut = _part(whole, *(part or (None, None)), sample.video.name)
        advance(probe.error)
        place = {"path": f"{name}/{sample.video.name}"}
        numbers = [table[label] for label in (fields[field] if field else ())]
        rows.append(_row(sample.key, sample.ext, probe, numbers, start) | _place(sample))
        if probe.error:
            kind = "unreadable" if whole.error else "range"
            where = {"shard": name, "row": len(rows) - 1}
            quarantine.append(place | {"kind": kind, "reason": probe.error} | where)
        if cut:
            report.append(place | {"kind": "range", "key": sample.key, "reason": cut})
    keys = keys_digest([row["key"] for row in rows])
    return Shard(ShardEntry(name, len(rows), path.stat().st_size, digest, keys), rows, quarantine, report)


def _part(probe: Probe, start: float | None, end: float | None, where: str) -> tuple[Probe, int, str | None]:
    """The part of a video that is the clip: its properties, its first frame, and a remark where it was cut shorter.

    Times become frames by the container's average rate: frame round(t * fps) is at t seconds.
    """
    if start is None or end is None or probe.info is None:
        return probe, 0, None
    info, times = probe.info, f"{start:g} to {end:g} s"
    first, last = round(start * info.fps), min(round(end * info.fps), info.frames)
    if start >= info.duration or first >= info.frames or info.fps <= 0:
        ended = f"begins where the video has ended, at {info.duration:.2f} s" if info.fps > 0 else "has no frame rate"
        return replace(probe, info=None, error=f"the part from {times} {ended} ({where})"), 0, None
    part = replace(info, frames=max(1, last - first), duration=min(end, info.duration) - start)
    remark = f"the part from {times} ends with its video, at {info.duration:.2f} s ({where})"
    return replace(probe, info=part), first, remark if end > info.duration + BEYOND else None


def _row(key: str, ext: str, probe: Probe, labels: Sequence[int], start: int = 0) -> dict[str, Any]:
    info = asdict(probe.info) if probe.info else dict.fromkeys(("frames", "fps", "width", "height", "duration"), 0)
    info = {"decoder": "", "fallback": None} | info | {"start": start}
    return {"key": key, "ext": ext, "sha256": probe.sha256, **info, "labels": list(labels), "error": probe.error}


def _properties(row: Mapping[str, Any], clip: Clip) -> dict[str, Any]:
    """The json beside a video in its tar."""
    properties = {name: row[name] for name in row if name not in ("key", "ext", "error")}
    properties |= {"label_names": clip.labels, "source": clip.name}
    if clip.start is not None:
        properties["segment"] = [clip.start, clip.end]
    if clip.frames is not None:
        properties["pictures"] = asdict(clip.frames)
    return properties


def _place(sample: Sample) -> dict[str, int]:
    return {"offset": sample.video.offset, "size": sample.video.size, "header": sample.video.header}


def _copy(path: Path, probe: Probe) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReskdError(f"{path}: can't be read any more ({error.strerror}). Put it back and run again") from error
    if hashlib.sha256(data).hexdigest() != probe.sha256:
        raise ReskdError(f"{path}: was changed while `prepare` was reading it. Run again when nobody writes to it")
    return data
