"""Makes one shard of a data set: packs videos into a tar, or indexes an existing tar."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.identity import ShardEntry, keys_digest
from stages.prepare.clips import Clip, safe_keys
from stages.prepare.encode_frames import encode_task
from stages.prepare.existing_shards import shard_labels
from stages.prepare.probe_videos import Part, Probe, crashed_probe, hash_task, probe_task
from stages.prepare.workers import Workers
from stages.shards.file_tree import extension
from stages.shards.tar_scan import Sample
from stages.shards.webdataset_tar import write_shard
from stages.video.decode import RULES


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
    every_frame: bool,
    advance: Callable[[str | None], None],
) -> Shard:
    """Copies readable videos into the tar `path`, each beside a json of its labels and properties.

    The tar is written as `temporary` first. Pictures are encoded into files beside `temporary`, and then copied.
    `table`: label -> class number. `every_frame`: see `probe_bytes`. `advance` is called for each clip, with the reason if
    it is unreadable, or None.
    """
    rows, quarantine, report = [], [], []
    files = {key: temporary.parent / "encoded" / f"{key}.mp4" if clip.frames else clip.path for key, clip in clips}
    (temporary.parent / "encoded").mkdir(exist_ok=True)
    tasks = (
        encode_task(clip, files[key])
        if clip.frames
        else probe_task(clip.path, part=_part(clip), every_frame=every_frame)
        for key, clip in clips
    )

    def readable():
        for (key, clip), probe in zip(clips, workers.map(tasks, crashed_probe), strict=True):
            advance(probe.error)
            if probe.error:
                quarantine.append({"path": clip.name, "kind": probe.kind, "reason": probe.error})
                continue
            if probe.remark:
                report.append({"path": clip.name, "kind": "range", "key": key, "reason": probe.remark})
            row = _row(key, extension(clip.identity), probe, [table[label] for label in clip.labels])
            rows.append(row)
            yield key, row["ext"], _read_unchanged(files[key], probe), _properties(row, clip)
            if clip.frames:
                files[key].unlink()

    samples, size, digest = write_shard(path, temporary, readable())
    for row, sample in zip(rows, samples, strict=True):
        assert row["key"] == sample.key
        row |= _place(sample)
    keys = keys_digest([row["key"] for row in rows])
    entry = ShardEntry(path.name, len(rows), size, digest, keys, RULES) if rows else None
    return Shard(entry, rows, quarantine, report)


def index_shard(
    path: Path,
    name: str,
    field: str | None,
    table: Mapping[str, int],
    workers: Workers,
    every_frame: bool,
    advance: Callable[[str | None], None],
) -> Shard:
    """The rows of an existing tar, labelled by `field`. An unreadable video is a row with an `error`; what has no video is
    no row, but a line of quarantine.jsonl.

    `table`: label -> class number. `every_frame`: see `probe_bytes`. `advance` is called for each clip, with the reason if
    it is unreadable, or None.
    """
    content, labels, parts = shard_labels(path, field == "txt")
    tasks = [
        probe_task(
            path, sample.video.offset, sample.video.size, part=_listed_part(part, sample), every_frame=every_frame
        )
        for sample, part in zip(content.samples, parts, strict=True)
    ]
    results = workers.map([hash_task(path), *tasks], crashed_probe)
    digest, rows, quarantine, report = next(results), [], [], []
    for sample, fields, probe in zip(content.samples, labels, results, strict=True):
        advance(probe.error)
        path_field = {"path": f"{name}/{sample.video.name}"}
        numbers = [table[label] for label in (fields[field] if field else ())]
        rows.append(_row(sample.key, sample.ext, probe, numbers) | _place(sample))
        if probe.error:
            line = path_field | {"kind": probe.kind, "reason": probe.error, "shard": name, "row": len(rows) - 1}
            quarantine.append(line)
        if probe.remark:
            report.append(path_field | {"kind": "range", "key": sample.key, "reason": probe.remark})
    for members in content.without_video:
        reason = "no video beside it" + (f", but {', '.join(members[1:])}" if members[1:] else "")
        quarantine.append({"path": f"{name}/{members[0]}", "kind": "no video", "reason": reason, "shard": name})
        advance(reason)
    keys = keys_digest([row["key"] for row in rows])
    return Shard(ShardEntry(name, len(rows), path.stat().st_size, digest, keys, RULES), rows, quarantine, report)


def _part(clip: Clip) -> Part | None:
    return None if clip.start is None or clip.end is None else Part(clip.start, clip.end, clip.where)


def _listed_part(times: tuple[float, float] | None, sample: Sample) -> Part | None:
    return None if times is None else Part(*times, sample.video.name)


def video_columns(probe: Probe) -> dict[str, Any]:
    """What a row says of its video: the columns of the index that `probe` decides."""
    info = asdict(probe.info) if probe.info else dict.fromkeys(("frames", "fps", "width", "height", "duration"), 0)
    return {"decoder": "", "fallback": None} | info | {"start": probe.start, "error": probe.error}


def _row(key: str, ext: str, probe: Probe, labels: Sequence[int]) -> dict[str, Any]:
    labels = list(dict.fromkeys(labels))  # two forms of a name are one class
    return {"key": key, "ext": ext, "sha256": probe.sha256, **video_columns(probe), "labels": labels}


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
