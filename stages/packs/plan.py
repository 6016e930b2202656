"""The plan of `pack`: which frames, which height and quality, which shards, and the estimated bytes."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cache.differences import renewed_shards
from cache.errors import ReskdError
from cache.reader import CacheReader, check_join
from cache.view import ViewPolicy
from stages.packs.config import PackConfig
from stages.packs.writing import WantedPictures, sample_pictures
from stages.remote.probe import PROBE
from stages.remote.url_path import Location
from stages.shards.dataset import Dataset, Row
from stages.stream.frame_height import height_for, smallest_side, smallest_stored_side
from stages.stream.pack_files import PACK, PackIdentity, pack_differences, read_committed_shards, read_pack
from stages.stream.replay import missing_parts
from stages.stream.rules import rows_of_older_rules
from stages.video import jpeg
from stages.video.decode import decoder_identity


@dataclass(frozen=True)
class Plan:
    """The plan of `pack`, the same on every rank."""

    identity: PackIdentity
    wanted: WantedPictures
    missing: tuple[str, ...]  # shards that aren't committed
    frames: int  # pictures of all clips
    sizes: tuple[int, ...]  # bytes of the missing shards, estimated from a sample
    psnr: float  # dB, of the sample at the chosen quality
    small: tuple[str, ...]  # "shard/key" of clips whose frames are smaller than the height; they keep their size

    @property
    def bytes(self) -> int:
        """Of the missing shards together."""
        return sum(self.sizes)


def plan_pack(config: PackConfig, data: Dataset) -> Plan:
    """Raises ReskdError for a cache that is not finished or has other shards, a height above that of every clip, a PSNR
    that no quality reaches, and an output folder with other content.
    """
    cache, views = _open_cache(config, data)
    policy = cache.manifest.identity.policy if cache else config.policy or ViewPolicy()
    crops = config.frames == "crops"
    side = 1.0 if crops else smallest_stored_side(cache, data, views) if cache else smallest_side(policy)
    height = config.height or height_for(config.size, side)
    wanted = WantedPictures(cache if crops else None, views)
    small = () if crops else _small_clips(config, data, height)
    pictures = sample_pictures(data, wanted, height)
    encode = partial(jpeg.encode, full_colour=crops)
    stored = read_pack(config.output)
    if config.psnr is None:
        quality = config.quality
    elif stored and stored.identity.psnr == config.psnr:
        quality = stored.identity.quality  # the sample is another one if clips are quarantined since
    else:
        quality = _lowest_quality(config.psnr, pictures, encode)
    identity = PackIdentity(data.shards, decoder_identity(), config.frames, views if crops else None, policy, side, height,
                        quality, config.psnr)  # fmt: skip
    refuse_other(config.output, identity)
    renewed = {entry.name for entry in renewed_shards(stored.identity.shards, identity.shards)} if stored else set()
    there = read_committed_shards(config.output, (e.name for e in data.shards if e.name not in renewed))
    missing = tuple(e.name for e in data.shards if there.get(e.name) is None)
    frames = {e.name: sum(map(len, wanted.frames_of_rows(data, e.name))) for e in data.shards}
    jpeg_bytes = np.mean([len(encode(picture, quality)) for picture in pictures])
    # 12 bytes a picture in the rows file, 2,048 a clip for tar headers.
    sizes = tuple(int(frames[s] * (jpeg_bytes + 12) + 2048 * data.entry(s).clips) for s in missing)
    return Plan(identity, wanted, missing, sum(frames.values()), sizes, _psnr(pictures, quality, encode), small)


def _open_cache(config: PackConfig, data: Dataset) -> tuple[CacheReader | None, int]:
    """A reader of the cache's views, and the number of views to pack; (None, 0) without a cache."""
    if config.cache is None:
        return None, 0
    reader = CacheReader(config.cache, ())
    check_join(reader.manifest, data.shards)
    if older := rows_of_older_rules(config.cache, reader.manifest.identity.shards, data, "cache-teacher"):
        raise ReskdError(f"{config.cache}: newer rules changed frames of {sum(map(len, older.values()))} of its clips: run "
                         "cache-teacher again first")  # fmt: skip
    views = config.views or reader.manifest.finalised or reader.manifest.views
    if views > reader.manifest.views:
        raise ReskdError(f"views {views}: {config.cache} has {reader.manifest.views}: lower `views`, or raise `views` "
                         "of cache-teacher")  # fmt: skip
    if lacking := missing_parts(config.cache, reader.manifest, data, views, ()):
        raise ReskdError(f"{config.cache} is not finished ({lacking}): run cache-teacher again")
    return reader, views


def _small_clips(config: PackConfig, data: Dataset, height: int) -> tuple[str, ...]:
    """The clips that are smaller than `height`. Raises ReskdError if `config.height` is given and all clips are smaller."""
    clips: list[tuple[str, Row]] = [
        (e.name, row) for e in data.shards for row in data.rows(e.name) if row.error is None
    ]
    small = tuple(f"{shard}/{row.key}" for shard, row in clips if min(row.width, row.height) < height)
    if config.height is not None and len(small) == len(clips):
        largest = max((min(row.width, row.height) for _, row in clips), default=0)
        raise ReskdError(f"height {height}: the largest of {len(clips)} clips of {data.path} has a shorter side of {largest} "
                         f"px: give a height of at most {largest}, or none")  # fmt: skip
    return small


Encode = Callable[[np.ndarray, int], bytes]  # a picture, and the quality


def _psnr(pictures: Sequence[np.ndarray], quality: int, encode: Encode) -> float:
    return float(np.mean([jpeg.psnr(jpeg.decode(encode(p, quality)), p) for p in pictures]))


def _lowest_quality(wanted: float, pictures: Sequence[np.ndarray], encode: Encode) -> int:
    """The lowest JPEG quality with a mean PSNR of at least `wanted` dB. Raises ReskdError if quality 95 has less."""
    quality = 1 + bisect.bisect_left(range(1, 96), wanted, key=lambda q: _psnr(pictures, q, encode))
    if quality > 95:
        raise ReskdError(
            f"psnr {wanted}: quality 95, the highest, has {_psnr(pictures, 95, encode):.1f} dB: lower psnr"
        )
    return quality


def refuse_other(output: Location, identity: PackIdentity) -> None:
    """Raises ReskdError, which names what is there, unless `output` is empty or has this pack."""
    stored = read_pack(output)
    if stored is None:
        if output.exists() and (
            not output.is_dir() or any(not p.name.startswith((f".{PACK}.", PROBE)) for p in output.iterdir())
        ):
            raise ReskdError(f"{output} is not an empty folder and holds no pack: give another output")
    elif lines := pack_differences(stored.identity, identity):
        raise ReskdError(
            f"{output} holds another pack:\n  " + "\n  ".join(lines) + "\nGive another output, or delete this one"
        )
