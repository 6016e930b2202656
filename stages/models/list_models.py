"""`pipeline.py models`: the cost of each network of the zoo at each input size."""

from __future__ import annotations

import math

import torch
from rich.table import Table

from cache.errors import ReskdError
from stages.models.architectures import build_model
from stages.models.video_model import model_stats
from stages.models.zoo import PROTOCOLS, ZOO
from stages.runtime.terminal import Terminal

SMALLEST, LARGEST = 8, 1024  # px, as for `size` in configs


def list_models(sizes: tuple[int, ...] = (224, 112)) -> list[dict]:
    """Print and return one row per network and size. Weights are neither created nor read.

    A row: {"name", "arch", "frames", "size", "parameters", "gmacs" of one view, "protocol", "gmacs_video", "grid"
    (T', h, w), "width"}.

    Raises:
        ReskdError: a size is not between SMALLEST and LARGEST.
    """
    for size in sizes:
        if not SMALLEST <= size <= LARGEST:
            raise ReskdError(f"size {size} must be from {SMALLEST} to {LARGEST} px")
    rows = [row for name in ZOO for row in _rows(name, sizes)]
    table = Table(caption="GFLOPs: 10⁹ multiply-adds, as in the literature. Views: clips × crops.")
    for column in ("model", "input", "params", "GFLOPs\na view", "views", "GFLOPs\na video", "features"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['frames']}×{row['size']}²",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['gmacs']:.2f}",
            row["protocol"].replace("x", "×"),
            f"{row['gmacs_video']:.1f}",
            "×".join(map(str, (*row["grid"], row["width"]))),
            end_section=row["size"] == sizes[-1],
        )
    Terminal().print(table)
    return rows


def _rows(name: str, sizes: tuple[int, ...]) -> list[dict]:
    config, protocol = ZOO[name], PROTOCOLS[name]
    views = math.prod(map(int, protocol.split("x")))
    with torch.device("meta"):  # shapes without data
        model = build_model(config)
    rows = []
    for size in sizes:
        stats = model_stats(model, size)
        rows.append(
            {
                "name": name,
                "arch": config.arch,
                "frames": config.num_frames,
                "size": size,
                "parameters": stats.parameters,
                "gmacs": stats.gmacs,
                "protocol": protocol,
                "gmacs_video": stats.gmacs * views,
                "grid": stats.grid,
                "width": stats.width,
            }
        )
    return rows
