"""The order of an epoch: which rows make up which micro-batch. A pure function that can be replayed anywhere.

Nothing here knows of targets, views, workers or ranks: rank r of W takes the micro-batches j with j % W == r,
DataLoader workers take them in turn, and a resume is a slice of the list. Integer hashes (splitmix64) and sorts of
unique keys make the order independent of any library's shuffle and of its version.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from cache.errors import ReskdError
from cache.view import BLOCK


def plan_epoch(
    rows: Sequence[np.ndarray],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    window: int = 16,
    streams: int = 64,
    group: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Order the usable rows of all shards into M micro-batches of `batch_size` clips.

    Shards are cut into blocks of 64 rows; blocks are permuted and taken `window` at a time, rows permuted inside; all
    is concatenated, truncated to whole steps of `group` micro-batches, and cut into S = `stream_count(M, streams)`
    streams; micro-batch j is the next one of stream j % S. So, row by row, a stream needs the blocks of one window at
    a time; a micro-batch that crosses the border of two windows touches both.

    Args:
        rows: for each shard its usable row numbers, integers, strictly increasing.
        seed, epoch: what the order depends on; the rows left out by the truncation change with the epoch.
        batch_size: clips of a micro-batch.
        window: blocks whose rows are mixed; the larger, the nearer to a full shuffle and the more targets are held.
        streams: how many streams are interleaved at most.
        group: micro-batches of one optimiser step over all ranks (world size x accumulation): M is a multiple of it.

    Returns:
        shard [M, B] int32 (position in `rows`) and row [M, B] int32.

    Raises:
        ReskdError: there are fewer usable clips than one step takes.
    """
    assert min(batch_size, window, streams, group) >= 1
    clips = sum(len(r) for r in rows)
    count = clips // (batch_size * group) * group
    if count == 0:
        raise ReskdError(
            f"{clips} usable clips in {len(rows)} shards are fewer than one step takes ({group} micro-batches of "
            f"{batch_size} = {group * batch_size}): lower the batch size or the accumulation, use fewer processes, "
            "or add clips"
        )
    shard = np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])
    row = np.concatenate([np.asarray(r, dtype=np.int32) for r in rows])
    order = _windowed_order(shard, row, window, hash_parts(seed, epoch))[: count * batch_size]
    order = order.reshape(count, batch_size)[_interleave(count, stream_count(count, streams))]
    return shard[order], row[order]


def stream_count(micro_batches: int, streams: int = 64) -> int:
    """S, the streams of an epoch of so many micro-batches: `streams`, or fewer so that each has at least 8 of them."""
    return min(streams, max(1, micro_batches // 8))


def replay_view(epoch: int, shard: str, views: int) -> int:
    """The stored view, 0 <= v < views, on which `epoch` trains the shard of that name: (epoch + offset) modulo views.

    The offset is a stable hash of the name: shards differ in an epoch, and each meets all views in `views` epochs.
    """
    assert views >= 1
    offset = int.from_bytes(hashlib.sha256(shard.encode()).digest()[:8], "little")
    return (epoch + offset) % views


def splitmix64(state: int, count: int) -> np.ndarray:
    """The first `count` outputs, uint64, of the generator SplitMix64 (Steele, Lea, Flood 2014) started at `state`."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(state % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def hash_parts(*parts: int) -> int:
    """One 64-bit state out of several numbers, each hashed in turn."""
    state = 0
    for part in parts:
        state = int(splitmix64(state ^ (part % 2**64), 1)[0])
    return state


def _windowed_order(shard: np.ndarray, row: np.ndarray, window: int, state: int) -> np.ndarray:
    """Positions [N] of all rows: blocks permuted, then `window` at a time with their rows permuted."""
    block_of = row // BLOCK
    new = np.ones(len(row), dtype=bool)
    new[1:] = (shard[1:] != shard[:-1]) | (block_of[1:] != block_of[:-1])
    assert (new[1:] | (row[1:] > row[:-1])).all(), "row numbers of a shard must increase"
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(row))
    permuted = np.argsort(splitmix64(hash_parts(state, 0), len(starts)), kind="stable")

    # One line per window, BLOCK lanes for each of its blocks. The lane stands in the low bits of the sort key, so keys
    # are unique and any sort gives the same answer; lanes without a row sort to the end.
    lines = -(-len(starts) // window)
    lanes = window * BLOCK
    bits = np.uint64((lanes - 1).bit_length())
    first, size = np.zeros((2, lines * window), dtype=np.int64)
    first[: len(starts)], size[: len(starts)] = starts[permuted], sizes[permuted]
    keys = splitmix64(hash_parts(state, 1), lines * lanes) >> np.uint64(1)
    used = np.arange(BLOCK) < size[:, None]
    keys[~used.ravel()] |= np.uint64(1 << 63)
    keys = keys.reshape(lines, lanes)
    keys = np.sort((keys >> bits << bits) | np.arange(lanes, dtype=np.uint64), axis=1)
    lane = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    position = np.take_along_axis(first.reshape(lines, window), lane // BLOCK, axis=1) + lane % BLOCK
    return position[keys < np.uint64(1 << 63)]


def _interleave(count: int, streams: int) -> np.ndarray:
    """For each micro-batch its place in the concatenated order: streams are near-equal runs of it, taken in turn."""
    each, longer = divmod(count, streams)
    turn, stream = np.divmod(np.arange(count), streams)
    return stream * each + np.minimum(stream, longer) + turn
