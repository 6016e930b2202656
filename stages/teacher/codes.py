"""The stored form of a teacher's targets, made on its device: codes, layout, and the check that every number is finite.

`cache/codecs.py` defines the numbers. This file computes the same ones in torch (on a CPU bit for bit), so that what crosses
to the host is what the cache stores, and nothing has to be done there but to compress it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cache.codecs import SMALLEST_SCALE, codec_of
from cache.reduction import Constants

FINITE = "finite"  # beside the arrays: bool [B]
FLOAT16_MAX = 65504.0  # a larger number can't be stored: it counts as not finite

Encode = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def target_encoder(settings: Mapping[str, Mapping[str, Any]], constants: Constants, device: torch.device) -> Encode:
    """`encode(targets)`: float32 targets on `device` -> the arrays that a cache stores of them, and FINITE bool [B].

    `settings`: the identity's settings of the targets. `constants`: scale and offset, if maps become codes. Logits [B,K] give
    their codec's arrays; maps [B,T',g,g',d] give "features" [B,d,T',g,g'], channel by channel. A row that isn't finite, or
    has a number too large for float16, holds anything: the writer puts fill values there.
    """
    ranges = {name: torch.from_numpy(constants[name]).to(device) for name in ("scale", "offset") if name in constants}

    def encode(targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = {FINITE: torch.stack([finite_rows(values) for values in targets.values()]).all(0)}
        if "logits" in targets:
            arrays |= encode_logits(targets["logits"], settings["logits"]["codec"])
        if "features" in targets:
            arrays["features"] = encode_maps(targets["features"], settings["features"]["codec"], ranges)
        return arrays

    return encode


def encode_logits(logits: Tensor, codec: str) -> dict[str, Tensor]:
    """float32 [B,K] -> the arrays of `codec`: logits, and for uint8 scale and offset float32 [B]."""
    if codec == "float16":
        return {"logits": logits.half()}
    rows = logits.double()
    lowest, highest = rows.aminmax(dim=1)
    offset = lowest.float()
    scale = ((highest - offset.double()) / 255).clamp(min=float(SMALLEST_SCALE)).float()
    codes = ((rows - offset[:, None].double()) / scale[:, None].double()).round().clamp(0, 255)
    return {"logits": codes.to(torch.uint8), "scale": scale, "offset": offset}


def encode_maps(maps: Tensor, codec: str, ranges: Mapping[str, Tensor]) -> Tensor:
    """float32 [B,T',g,g',d] -> what `codec` stores, [B,d,T',g,g'] in one piece. `ranges`: scale and offset [d], for codes."""
    stored = codec_of("features", codec)
    dtype, levels = getattr(torch, stored.arrays["features"].dtype), stored.levels
    batch, *grid, width = maps.shape
    out = torch.empty((batch, width, *grid), dtype=dtype, device=maps.device)
    # A map stays in a core's cache from its first step to its last. A GPU takes the whole batch.
    for rows in [slice(None)] if maps.device.type != "cpu" else range(batch):
        values = maps[rows]
        if levels is not None:
            values = values.sub(ranges["offset"]).div_(ranges["scale"]).round_().clamp_(-levels, levels)
        values = values.to(dtype)
        if values.is_contiguous():  # torch has a fast copy for a transposed matrix
            out[rows].flatten(-3).copy_(values.flatten(-4, -2).mT)
        else:  # a net that keeps its channels first
            out[rows].copy_(values.movedim(-1, -4))
    return out


def finite_rows(values: Tensor) -> Tensor:
    """bool [B]: the rows without NaN, infinity, or a number too large for float16."""
    dims = tuple(range(1, values.ndim))
    return (values.amax(dims) <= FLOAT16_MAX) & (values.amin(dims) >= -FLOAT16_MAX)
