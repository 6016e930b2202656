"""The order of an epoch: which rows make up which micro-batch. A pure function: the same arguments give the same order.

The order doesn't depend on targets, views, workers or ranks. Rank r of W takes the micro-batches j with j % W == r. A
rank's DataLoader workers take its micro-batches in turn. A resume skips the first part of the list. Integer hashes
(splitmix64) and sorts of unique keys make the order independent of libraries and their versions.
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

    1. Shards are cut into blocks of 64 rows, and the blocks are permuted.
    2. Each run of `window` blocks is a window. The rows of a window are permuted. The windows are concatenated.
    3. The rows are truncated to whole steps of `group` micro-batches, and cut into S = `stream_count(M, streams)` streams.
    4. Micro-batch j is the next micro-batch of stream j % S.
    So a stream needs the blocks of one window at a time, or of two if a micro-batch crosses their border.

    Args:
        rows: for each shard its usable row numbers, integers, strictly increasing.
        seed, epoch: decide the permutations; each epoch's truncation leaves out other rows.
        batch_size: clips of a micro-batch.
        window: blocks whose rows are mixed. A larger window is nearer to a full shuffle and holds more targets in memory.
        streams: the largest number of streams.
        group: micro-batches of one optimiser step over all ranks (ranks × accumulation). M is a multiple of it.

    Returns:
        shard [M, B] int32 (position in `rows`) and row [M, B] int32.

    Raises:
        ReskdError: one step takes more clips than the usable ones.
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
    """S, the number of streams of an epoch: `streams`, or fewer, so that each stream has at least 8 micro-batches."""
    return min(streams, max(1, micro_batches // 8))


def replay_view(epoch: int, shard: str, views: int) -> int:
    """The stored view of a shard, 0 <= v < views, that an epoch replays: (epoch + offset) modulo views.

    The offset is a stable hash of the shard's name. So shards have different views in an epoch, and each shard has all
    views in `views` epochs.
    """
    assert views >= 1
    offset = int.from_bytes(hashlib.sha256(shard.encode(errors="surrogateescape")).digest()[:8], "little")
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
    """One 64-bit state from several numbers, which are hashed one after the other."""
    state = 0
    for part in parts:
        state = int(splitmix64(state ^ (part % 2**64), 1)[0])
    return state


def _windowed_order(shard: np.ndarray, row: np.ndarray, window: int, state: int) -> np.ndarray:
    """Positions of all rows, int64 [N]: blocks are permuted, then the rows of each `window` blocks."""
    block_of = row // BLOCK
    is_first = np.ones(len(row), dtype=bool)  # of its block
    is_first[1:] = (shard[1:] != shard[:-1]) | (block_of[1:] != block_of[:-1])
    assert (is_first[1:] | (row[1:] > row[:-1])).all(), "row numbers of a shard must increase"
    starts = np.flatnonzero(is_first)
    sizes = np.diff(starts, append=len(row))
    permuted = np.argsort(splitmix64(hash_parts(state, 0), len(starts)), kind="stable")

    # One line per window, with BLOCK lanes for each block. The low bits of a sort key are its lane. So keys are unique,
    # and every sort gives the same order. Lanes without a row go to the end.
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
    """For each micro-batch its place before interleaving. Streams are near-equal runs of places and are taken in turn."""
    length, longer = divmod(count, streams)  # the first `longer` streams have one micro-batch more
    turn, stream = np.divmod(np.arange(count), streams)
    return stream * length + np.minimum(stream, longer) + turn
