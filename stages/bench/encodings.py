"""Bytes and errors of encodings on a teacher's maps of real videos. The errors are measured on held-out videos."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from rich.table import Table

from cache.errors import ReskdError
from cache.identity import Identity
from cache.manifest import FORMAT
from cache.view import ViewPolicy
from stages.bench.figures import Figure, show
from stages.bench.imagenet import imagenet_net
from stages.distill.targets import teacher_outputs
from stages.models.checkpoints import load_model
from stages.models.video_model import VideoModel
from stages.prepare.prepare import prepare
from stages.runtime.terminal import console
from stages.shards.dataset import Dataset, open_dataset
from stages.stream.clips import ClipDataset
from stages.stream.loading import raise_errors
from stages.teacher.encodings import ProbeOutput, candidates, measure_prices
from stages.video.decode import decoder_identity

HELD_OUT = 5  # one video in 5 is held out of the sample
FRAMES, IMAGENET_SIZE = 8, 224  # of the net with ImageNet's weights


def run_encodings(
    videos: Path, teacher: Path | None, views: int, grid: tuple[int, int] | None, output: Path | None
) -> list[Figure]:
    """Measure every encoding on `views` training views of each video of a folder or of a prepared data set.

    `teacher`: a checkpoint; None: EfficientNet-Lite0 with ImageNet's weights, from a package. `grid`: of the student's map.
    Raises ReskdError if fewer than two videos are readable.
    """
    model, size = (imagenet_net("lite0", FRAMES), IMAGENET_SIZE) if teacher is None else _from_checkpoint(teacher)
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(videos) if (videos / "index.json").exists() else prepare(videos, Path(folder) / "data")
        maps, identity = _maps(data, model, size, views)
    nonzero = 100 * float((maps.features != 0).float().mean())
    console.print(f"maps {'×'.join(map(str, maps.features.shape[1:]))} of {len(maps.held_out)} clip·views, {nonzero:.0f} % of "
                  f"the numbers not zero; {int(maps.held_out.sum()) // views} of {len(maps.held_out) // views} videos held out",
                  highlight=False)  # fmt: skip
    encodings = [e for e in candidates(tuple(maps.features.shape[1:]), None, grid) if e.features is not None]
    held_out = measure_prices(maps, encodings, identity)
    in_sample = measure_prices(replace(maps, held_out=np.zeros_like(maps.held_out)), encodings, identity)
    table = Table("encoding", "bytes a clip·view", "basis keeps %", "of the sample %", "grid keeps %", "rounding %")
    figures = []
    for price, sample_price in zip(held_out, in_sample, strict=True):
        name, error = price.encoding.name, price.error
        shares, rounding = (error["channels"], sample_price.error["channels"], error["grid"]), 100 * error["rounding"]
        table.add_row(name, f"{price.bytes:,.0f}", *(f"{100 * share:.1f}" for share in shares), f"{rounding:.3f}")
        figures += [
            Figure(f"{name}: bytes of a clip·view", price.bytes, "B"),
            Figure(f"{name}: energy kept on videos left out", 100 * error["channels"] * error["grid"], "%"),
            Figure(f"{name}: rounding error in the energy kept", rounding, "%"),
        ]
    console.print(table)
    show("encodings", figures, output)
    return figures


def _from_checkpoint(path: Path) -> tuple[VideoModel, int]:
    model, card = load_model(path)
    return model, card.size


def _maps(data: Dataset, model: VideoModel, size: int, views: int) -> tuple[ProbeOutput, Identity]:
    """The teacher's outputs for `views` views of each video, and the identity of a cache of them.

    Every fifth video is held out. Raises ReskdError if fewer than two videos are readable.
    """
    policy = ViewPolicy(num_frames=model.num_frames)
    clips = ClipDataset(data, size=size, num_classes=max(1, len(data.classes)), policy=policy)
    rows = [(s, int(r)) for s, usable in enumerate(data.usable_rows()) for r in usable]
    if len(rows) < 2:
        raise ReskdError(f"{data.path}: {len(rows)} readable videos: give two or more, because one is held out")
    every, held_out, outputs = min(HELD_OUT, len(rows)), [], []
    for i, (shard, row) in enumerate(track(rows, description="teacher", console=console)):
        batch = next(raise_errors([clips.__getitems__([(shard, row, view) for view in range(views)])]))
        outputs.append(teacher_outputs(model, batch.clips[batch.usable], ("logits", "features"), torch.float32))
        held_out += [i % every == every - 1] * int(batch.usable.sum())
    features, logits = (torch.cat([output[name] for output in outputs]) for name in ("features", "logits"))
    n, time = len(features), policy.num_frames
    columns = {"frames": np.zeros((n, time), np.int32), "box": np.zeros((n, 4), np.float32),
               "flip": np.zeros(n, bool), "valid": np.ones(n, bool)}  # fmt: skip
    identity = Identity(FORMAT, {}, decoder_identity(), policy, tuple(data.shards), (),
                        {"logits": {"codec": "uint8", "width": logits.shape[1]}})  # fmt: skip
    return ProbeOutput(columns, logits.numpy(), features, np.array(held_out)), identity
