"""The cost of a cache for a student and for stage one: joining, opening, encoding, and the size on disk."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from cache.arrays import compressed_bytes
from cache.codecs import codec_of
from cache.create import create_cache
from cache.finalise import finalise
from cache.identity import Identity, ShardEntry, keys_digest
from cache.manifest import FORMAT, Manifest
from cache.reader import CacheReader
from cache.view import BLOCK, ViewPolicy, sample_view
from cache.writer import ShardWriter
from stages.bench.clocks import RUNS, cpu_seconds
from stages.bench.figures import Figure, at_most, show
from stages.bench.resident import resident_figures
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.teacher.reduction import Sample, estimate_constants, reduce_features

CLASSES, FRAMES = 400, 8
MAP = (8, 4, 4, 128)  # 16 KB in int8
HELD_MAP = (8, 7, 7, 128)  # 50 KB: blocks of 3 MB, beside which a process's own memory is small
# Encodings of maps of 8×7×7×2048: codec, dimensions, side of the student's grid, bytes allowed. Random maps in a basis have
# no zeros, so they take as many bytes as maps can take.
ENCODINGS = (("int8", None, 7, None), ("int4", None, 7, None), ("int8", 128, 7, None), ("int4", 256, 7, 50_000),
        ("int4", 256, 4, 20_000))  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Caches of `clips` clips and of `shards` shards; maps of the shape `maps`, whose first side is their number; a
    ResNet-50 at `size` px."""

    clips: int = 1024
    shards: int = 10_000
    maps: tuple[int, ...] = (16, 8, 7, 7, 2048)
    size: int = 224
    runs: int = RUNS


FULL = Setup()
QUICK = Setup(shards=1000)


def run_join(quick: bool, output: Path | None) -> list[Figure]:
    """Measure the cost of a clip on one core, with caches of 400 classes that are in the page cache."""
    setup = QUICK if quick else FULL
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        figures = [*_joining(path, setup), _opening(path, setup), _memory(path, setup), _logits_on_disk(path, setup)]
        figures += resident_figures(_make(path / "resident", 2 * setup.clips, HELD_MAP), 2 * setup.clips)
    figures += _encoding(setup)
    show("join", figures, output)
    return figures


def _identity(shards: dict[str, int], maps: tuple[int, ...] | None) -> Identity:
    keys = {name: [f"{name[:6]}-{i:06d}" for i in range(clips)] for name, clips in shards.items()}
    entries = tuple(ShardEntry(n, len(k), 1, "0" * 64, keys_digest(k)) for n, k in keys.items())
    targets = {"logits": {"codec": "uint8", "width": CLASSES}}
    if maps:
        targets["features"] = {"codec": "int8", "grid": maps[:3], "width": maps[3], "map": maps, "sample": None}
    policy = ViewPolicy(num_frames=FRAMES)
    return Identity(FORMAT, {"weights_sha256": "0"}, "none", policy, entries, tuple(map(str, range(CLASSES))), targets)


def _make(path: Path, clips: int, maps: tuple[int, ...] | None) -> Path:
    """A finished cache of one shard and two views, with sampled views and random targets."""
    random, shard = np.random.default_rng(0), "000000.tar"
    manifest = Manifest(_identity({shard: clips}, maps), 2)
    width = maps[3] if maps else 0
    constants = {"scale": np.full(width, 0.05, np.float32), "offset": np.zeros(width, np.float32)}
    manifest = create_cache(path, manifest, constants if maps else None)
    keys = [f"000000-{i:06d}" for i in range(clips)]
    writer = ShardWriter(path, manifest, shard, keys, range(2))
    for low in range(0, clips, BLOCK):
        rows = slice(low, min(low + BLOCK, clips))
        n = rows.stop - rows.start
        for view in range(2):
            sampled = [sample_view(manifest.identity.policy, shard=shard, key=key, index=view, num_frames=300, aspect=4 / 3)
                       for key in keys[rows]]  # fmt: skip
            targets = {"logits": random.normal(0, 3, (n, CLASSES))}
            if maps:
                targets["features"] = random.normal(0, 1, (n, *maps))
            writer.write(view, rows, frames=np.stack([v.frames for v in sampled]), box=np.stack([v.box for v in sampled]),
                         flip=np.array([v.flip for v in sampled]), valid=np.ones(n, bool), **targets)  # fmt: skip
    writer.commit({}, {})
    finalise(path)
    return path


def _joining(path: Path, setup: Setup) -> list[Figure]:
    """Read every row of a view in random order, as a worker does: the block, the row, the view."""
    figures = []
    for name, features, goal in (("logits + view", False, 30), ("logits + view + 16 KB of features", True, 100)):
        cache = _make(path / name.replace(" ", ""), setup.clips, MAP if features else None)
        order = np.random.default_rng(1).permutation(setup.clips)

        def join(cache: Path = cache, features: bool = features, order: np.ndarray = order) -> None:
            reader = CacheReader(cache, ("logits", "features") if features else ("logits",))
            for start in range(0, setup.clips, 16):
                rows = order[start : start + 16]
                blocks = [(reader.block("000000.tar", 0, int(r) // BLOCK), int(r) % BLOCK) for r in rows]
                np.stack([b.logits[i] for b, i in blocks])
                if features:
                    np.stack([np.moveaxis(b.features[i], -1, 0) for b, i in blocks])
                for block, i in blocks:
                    block.view_of(i)

        cost = [1e6 * s / setup.clips for s in cpu_seconds(join, setup.runs)]
        figures.append(at_most(f"join, {name}", cost, "µs a clip", goal))
    return figures


def _opening(path: Path, setup: Setup) -> Figure:
    names = {f"{i:06d}.tar": 1 for i in range(setup.shards)}
    create_cache(path / "many", Manifest(_identity(names, None), 1))
    seconds = cpu_seconds(lambda: CacheReader(path / "many"), setup.runs)
    return at_most(f"open a cache of {setup.shards} shards", seconds, "s", 0.1)


def _memory(path: Path, setup: Setup) -> Figure:
    """The additional memory of a reader for a cache with four times the clips. A reader keeps a bounded number of blocks."""
    grown = []
    for clips in (setup.clips, 4 * setup.clips):
        cache, process = _make(path / f"memory-{clips}", clips, MAP), psutil.Process()
        reader = CacheReader(cache, ("logits", "features"), capacity_blocks=8)
        before = process.memory_info().rss
        for block in range(clips // BLOCK):
            reader.block("000000.tar", 0, block)
        grown.append(process.memory_info().rss - before)
    return at_most("a reader's memory over 4 times the clips", [(grown[1] - grown[0]) / 1e6], "MB more", 16)


def _logits_on_disk(path: Path, setup: Setup) -> Figure:
    files = [p for p in (path / "logits+view" / "000000.tar").glob("*/c.*")]
    return at_most(
        "400 logits, on disk", [sum(p.stat().st_size for p in files) / (2 * setup.clips)], "B a clip·view", 420
    )


def _encoding(setup: Setup) -> list[Figure]:
    """The time and the bytes of encoding maps like those of a ResNet-50: 8×7×7×2048, positive, 15 % not zero."""
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(*setup.maps, generator=random).sub(1.04).relu()
    model = build_model(ModelConfig(backbone="resnet50", num_classes=CLASSES)).eval()
    clip = torch.zeros(1, FRAMES, 3, setup.size, setup.size, dtype=torch.uint8)
    with torch.inference_mode():
        teacher = float(np.median(cpu_seconds(lambda: model(clip), setup.runs)))
    figures = [Figure(f"ResNet-50 at {setup.size}, {FRAMES} frames, one core", 1e3 * teacher, "ms a clip·view")]
    for codec, dims, grid, most in ENCODINGS:
        sample = Sample((setup.maps[1], grid, grid), moments=dims is not None)
        sample.add(maps, np.zeros(len(maps), bool))
        constants = estimate_constants(sample, codec, dims, None)
        tensors = {n: torch.from_numpy(constants[n]) for n in ("basis", "mean") if n in constants}

        def encode(codec=codec, tensors=tensors, constants=constants, grid=grid) -> int:
            reduced = reduce_features(maps, (setup.maps[1], grid, grid), tensors).numpy()
            return compressed_bytes(codec_of("features", codec).encode(reduced, constants)["features"])

        name = f"encoding: {codec}" + (f", {dims} dims" if dims else "") + (f", {grid}×{grid} grid" if grid < 7 else "")
        cost = [s / len(maps) for s in cpu_seconds(encode, setup.runs)]
        figures.append(Figure(name, 1e3 * float(np.median(cost)), "ms a clip·view"))
        figures.append(at_most(f"{name}, of the teacher's time", [100 * s / teacher for s in cost], "%", 3))
        if most:
            figures.append(at_most(f"{name}, on disk", [encode() / len(maps)], "B a clip·view", most))
    return figures
