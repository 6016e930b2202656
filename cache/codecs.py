"""How targets are stored: plain functions between float32 rows and the arrays kept for them, and the table `CODECS`.

Maps are reduced before (`reduction.py`); here they are rounded. The manifest names the codec of each target. The keys of
`Codec.arrays` are the names of the arrays in a shard's group. A fill value means "not written", and is never read as data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import ReskdError
from cache.reduction import Constants

_TINY = np.finfo(np.float32).tiny
_WIDEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Stored:
    """One array of a codec: `per_row` arrays hold one number a row, others the shape of the target."""

    dtype: str
    fill: float
    per_row: bool = False


@dataclass(frozen=True)
class Codec:
    """`encode`: float32 [N, ...] and the root's constants -> arrays by name. `decode`: the same arrays -> [N, ...].

    `levels`: codes are integers from -levels to levels, of a range for each channel (see `to_codes`); None: no codes.
    """

    arrays: Mapping[str, Stored]
    encode: Callable[[np.ndarray, Constants], dict[str, np.ndarray]]
    decode: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    levels: int | None = None

    def bytes(self, shape: Sequence[int]) -> int:
        """Of one row's target of this shape, before zstd."""
        return sum(np.dtype(a.dtype).itemsize * (1 if a.per_row else math.prod(shape)) for a in self.arrays.values())


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


def to_codes(reduced: np.ndarray, constants: Constants, codec: str = "int8") -> np.ndarray:
    """Reduced maps y, float [..., d] -> codes, integers; what lies outside the range of a channel goes to its end.

    A code is (y - offset) / scale, rounded; each channel has its own scale and offset.
    """
    kind = CODECS["features"][codec]
    with np.errstate(over="ignore"):  # beyond the range of a channel that never varied
        codes = np.rint((np.asarray(reduced, np.float32) - constants["offset"]) / constants["scale"])
    return codes.clip(-kind.levels, kind.levels).astype(kind.arrays["features"].dtype)


def from_stored(stored: np.ndarray, constants: Constants) -> np.ndarray:
    """Codes or float16 as stored -> y, float32."""
    values = stored.astype(np.float32)
    is_code = np.issubdtype(stored.dtype, np.integer)
    return values * constants["scale"] + constants["offset"] if is_code else values


def ranges(low: np.ndarray, high: np.ndarray, codec: str = "int8") -> dict[str, np.ndarray]:
    """scale and offset [d], float32, whose codes reach from `low` to `high` [d]; the lowest value has a code."""
    levels = CODECS["features"][codec].levels
    low, high = low.astype(np.float64), high.astype(np.float64)
    scale = np.maximum((high - low) / (2 * levels), np.finfo(np.float32).tiny).astype(np.float32)
    return {"scale": scale, "offset": (low + levels * scale.astype(np.float64)).astype(np.float32)}  # so that 0 stays 0


def is_finite(values: np.ndarray) -> bool:
    """Whether all values are numbers; of codes, whether all were written. float16 is judged by its exponent's bits, which
    is several times faster than np.isfinite."""
    if np.issubdtype(values.dtype, np.signedinteger):
        return not (values == np.iinfo(values.dtype).min).any()
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    bits = np.ascontiguousarray(values).view(np.uint16)
    return not ((bits & 0x7C00) == 0x7C00).any()


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if not is_finite(values):
        raise ReskdError(f"{name}: NaN or infinity.")
    return values


def rounded(name: str, levels: int, dtype: str = "int8") -> Codec:
    """The codec `name` of feature maps: codes from -levels to levels, a byte each. Fewer levels leave less after zstd.

    Maps stay in memory as they are stored: a block of them is large. The loss takes them to float32 on its device.
    """
    return Codec(
        arrays={"features": Stored(dtype, float(np.iinfo(dtype).min))},  # the lowest integer is never a code
        encode=lambda maps, constants: {"features": to_codes(_finite("features", maps), constants, name)},
        decode=lambda arrays: arrays["features"],
        levels=levels,
    )


CODECS: dict[str, dict[str, Codec]] = {
    "logits": {
        "uint8": Codec(
            arrays={
                "logits": Stored("uint8", 0),
                "scale": Stored("float32", np.nan, per_row=True),
                "offset": Stored("float32", np.nan, per_row=True),
            },
            encode=lambda logits, constants: encode_logits_uint8(logits),
            decode=decode_logits_uint8,
        ),
        "float16": Codec(
            arrays={"logits": Stored("float16", np.nan)},
            encode=lambda logits, constants: encode_float16("logits", logits),
            decode=lambda arrays: arrays["logits"].astype(np.float32),
        ),
    },
    "features": {
        "float16": Codec(
            arrays={"features": Stored("float16", np.nan)},
            encode=lambda maps, constants: encode_float16("features", maps),
            decode=lambda arrays: arrays["features"],
        ),
        "int8": rounded("int8", 127),
        "int4": rounded("int4", 7),
        "int3": rounded("int3", 3),
    },
}


def codec_of(target: str, name: str) -> Codec:
    """The codec of "logits" or "features" by name. Raises ReskdError for an unknown one."""
    if name not in CODECS.get(target, {}):
        choices = ", ".join(f"{t}: {', '.join(codecs)}" for t, codecs in CODECS.items())
        raise ReskdError(f"target {target!r} can't be stored as {name!r}; there are {choices}.")
    return CODECS[target][name]
