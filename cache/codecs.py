"""How targets are stored: plain functions between float32 rows and the arrays kept for them.

Maps are reduced before (`reduction.py`); here they are rounded. A codec is named in the manifest's targets. Its arrays'
names are its dictionary's keys; fill values are sentinels, never read as data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cache.errors import ReskdError
from cache.reduction import LEVELS, Constants, to_codes

_TINY = np.finfo(np.float32).tiny
_WIDEST = float(np.finfo(np.float32).max)
NOT_WRITTEN = -128  # among int8 codes


@dataclass(frozen=True)
class Stored:
    """One array of a codec: `per_row` arrays hold one number a row, others the shape of the target."""

    dtype: str
    fill: float
    per_row: bool = False


@dataclass(frozen=True)
class Codec:
    """`encode`: float32 [N, ...] and the root's constants -> arrays by name. `decode`: the same arrays -> [N, ...]."""

    arrays: Mapping[str, Stored]
    encode: Callable[[np.ndarray, Constants], dict[str, np.ndarray]]
    decode: Callable[[Mapping[str, np.ndarray]], np.ndarray]


def encode_logits_uint8(logits: np.ndarray) -> dict[str, np.ndarray]:
    """float [N,K] -> logits uint8 [N,K], scale and offset float32 [N].

    Off by at most scale / 2, and float32's rounding.
    Raises ReskdError for NaN, infinity, and rows wider than float32.
    """
    rows = _finite("logits", logits).astype(np.float64)
    offset, highest = rows.min(axis=1), rows.max(axis=1)
    if (highest - offset).max(initial=0) > _WIDEST or np.abs(rows).max(initial=0) > _WIDEST:
        raise ReskdError("logits: the range of a row overflows float32.")
    offset = offset.astype(np.float32)
    # A positive scale even for a constant row: zero would divide, and NaN means that nothing was written.
    scale = np.maximum((highest - offset) / 255, _TINY).astype(np.float32)
    codes = np.rint((rows - offset[:, None]) / scale[:, None].astype(np.float64))
    return {"logits": codes.clip(0, 255).astype(np.uint8), "scale": scale, "offset": offset}


def decode_logits_uint8(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """-> float32 [N,K]; rows whose scale is NaN are NaN."""
    logits = arrays["logits"].astype(np.float32)
    logits *= arrays["scale"][:, None]
    logits += arrays["offset"][:, None]
    return logits


def encode_float16(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """float [N, ...] -> the same in float16. Raises ReskdError for NaN, infinity and what float16 can't hold."""
    with np.errstate(over="ignore"):
        stored = _finite(name, values).astype(np.float16)
    if not is_finite(stored):
        worst = float(np.abs(values).max())
        raise ReskdError(f"{name}: {worst:g} overflows float16, which ends at 65504.")
    return {name: stored}


def is_finite(values: np.ndarray) -> bool:
    """np.isfinite(values).all(); for float16 by its exponent's bits, which is several times faster; of int8 codes,
    whether all were written."""
    if values.dtype == np.int8:
        return not (values == NOT_WRITTEN).any()
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    bits = np.ascontiguousarray(values).view(np.uint16)
    return not ((bits & 0x7C00) == 0x7C00).any()


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if not is_finite(values):
        raise ReskdError(f"{name}: NaN or infinity.")
    return values


LOGITS = {
    "uint8": Codec(
        {
            "logits": Stored("uint8", 0),
            "scale": Stored("float32", np.nan, per_row=True),
            "offset": Stored("float32", np.nan, per_row=True),
        },
        lambda logits, constants: encode_logits_uint8(logits),
        decode_logits_uint8,
    ),
    "float16": Codec(
        {"logits": Stored("float16", np.nan)},
        lambda logits, constants: encode_float16("logits", logits),
        lambda arrays: arrays["logits"].astype(np.float32),
    ),
}

# Maps stay in memory as they are stored: a block of them is large, and the loss takes them to float32 on its device.
FEATURES = {
    "float16": Codec(
        {"features": Stored("float16", np.nan)},
        lambda features, constants: encode_float16("features", features),
        lambda arrays: arrays["features"],
    ),
    **{
        codec: Codec(
            {"features": Stored("int8", NOT_WRITTEN)},
            lambda features, constants, codec=codec: {
                "features": to_codes(_finite("features", features), constants, codec)
            },
            lambda arrays: arrays["features"],
        )
        for codec in LEVELS
    },
}


def codec_of(target: str, name: str) -> Codec:
    """The codec of "logits" or "features" by name. Raises ReskdError for an unknown one."""
    known = {"logits": LOGITS, "features": FEATURES}
    if name not in known.get(target, {}):
        choices = ", ".join(f"{t}: {', '.join(codecs)}" for t, codecs in known.items())
        raise ReskdError(f"target {target!r} can't be stored as {name!r}; there are {choices}.")
    return known[target][name]
