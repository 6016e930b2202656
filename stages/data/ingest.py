"""One shard of a data set, from annotated videos or from a foreign tar: its rows, and what was unreadable."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from cache.manifest import ShardEntry, keys_digest
from stages.data.annotations import Clip, extension, safe_keys
from stages.data.foreign import shard_labels
from stages.data.probing import Probe, Prober, crashed_probe, hash_task, probe_task
from stages.data.shards import write_shard
from stages.data.tarscan import VIDEO_EXTENSIONS, Sample


@dataclass(frozen=True)
class Shard:
    """`entry` is None where no clip was readable, and no tar written."""

    entry: ShardEntry | None
    rows: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]  # path, reason


def spread_clips(clips: Sequence[Clip], *, seed: int, per_shard: int, max_bytes: int) -> list[list[tuple[str, Clip]]]:
    """(key, clip) of each shard. The order is that of sha256(seed, name): the same everywhere, whatever the library."""
    keyed = list(zip(safe_keys([clip.name for clip in clips]), clips, strict=True))
    shards, size = [], 0
    for key, clip in sorted(keyed, key=lambda item: hashlib.sha256(f"{seed}/{item[0]}".encode()).digest()):
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
    """Copies readable videos into the tar `path`, each beside a json of its labels and properties.

    `advance` is called for each clip, with the reason where it is unreadable.
    """
    rows, quarantine = [], []
    usable = {key for key, clip in clips if _unfit(clip) is None}
    probes = prober.map((probe_task(clip.path) for key, clip in clips if key in usable), crashed_probe)

    def readable():
        for key, clip in clips:
            probe = next(probes) if key in usable else Probe("", None, _unfit(clip))
            advance(probe.error)
            if probe.error:
                quarantine.append({"path": clip.name, "reason": probe.error})
                continue
            row = _row(key, extension(clip.name), probe, [table[label] for label in clip.labels])
            rows.append(row)
            properties = {name: row[name] for name in row if name not in ("key", "ext", "error")}
            yield key, row["ext"], _copy(clip, probe), properties | {"label_names": clip.labels, "source": clip.name}

    samples, size, digest = write_shard(path, temporary, readable())
    for row, sample in zip(rows, samples, strict=True):
        assert row["key"] == sample.key
        row |= _place(sample)
    entry = ShardEntry(path.name, len(rows), size, digest, keys_digest([row["key"] for row in rows])) if rows else None
    return Shard(entry, rows, quarantine)


def index_shard(
    path: Path,
    name: str,
    field: str | None,
    table: Mapping[str, int],
    prober: Prober,
    advance: Callable[[str | None], None],
) -> Shard:
    """The rows of a foreign tar, labelled by `field`; its unreadable videos are rows with an `error`."""
    samples, labels = shard_labels(path, field == "txt")
    videos = [(sample.video.offset, sample.video.size) for sample in samples]
    results = prober.map([hash_task(path), *(probe_task(path, *video) for video in videos)], crashed_probe)
    digest, rows, quarantine = next(results), [], []
    for sample, fields, probe in zip(samples, labels, results, strict=True):
        advance(probe.error)
        numbers = [table[label] for label in (fields[field] if field else ())]
        rows.append(_row(sample.key, sample.ext, probe, numbers) | _place(sample))
        if probe.error:
            where = {"shard": name, "row": len(rows) - 1}
            quarantine.append({"path": f"{name}/{sample.video.name}", "reason": probe.error} | where)
    keys = keys_digest([row["key"] for row in rows])
    return Shard(ShardEntry(name, len(rows), path.stat().st_size, digest, keys), rows, quarantine)


def _unfit(clip: Clip) -> str | None:
    if clip.size is None:
        return f"no such file ({clip.where})"
    if extension(clip.name) not in VIDEO_EXTENSIONS:
        return f"not a video by its extension ({clip.where}); known: {', '.join(sorted(VIDEO_EXTENSIONS))}"
    return None


def _row(key: str, ext: str, probe: Probe, labels: Sequence[int]) -> dict[str, Any]:
    info = asdict(probe.info) if probe.info else dict.fromkeys(("frames", "fps", "width", "height", "duration"), 0)
    info = {"decoder": "", "fallback": None} | info
    return {"key": key, "ext": ext, "sha256": probe.sha256, **info, "labels": list(labels), "error": probe.error}


def _place(sample: Sample) -> dict[str, int]:
    return {"offset": sample.video.offset, "size": sample.video.size, "header": sample.video.header}


def _copy(clip: Clip, probe: Probe) -> bytes:
    try:
        data = clip.path.read_bytes()
    except OSError as error:
        raise ReskdError(
            f"{clip.path}: can't be read any more ({error.strerror}). Put it back and run again"
        ) from error
    if hashlib.sha256(data).hexdigest() != probe.sha256:
        raise ReskdError(f"{clip.path}: was changed while `prepare` was reading it. Run again when nobody writes to it")
    return data
