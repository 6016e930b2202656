"""How targets are stored: functions from float32 rows to stored arrays and back, and the table `CODECS`.

`reduction.py` makes feature maps smaller; a codec then rounds them. The manifest names the codec of each target. The keys of
`Codec.arrays` are the names of the arrays in a shard's group. A fill value means "not written", and is never read as data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import ReskdError
from cache.reduction import Constants

SMALLEST_SCALE = np.finfo(np.float32).tiny
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class StoredArray:
    """One array of a codec. `per_row`: a row is one number; otherwise a row has the shape of the target."""

    dtype: str
    fill: float
    per_row: bool = False


@dataclass(frozen=True)
class Codec:
    """How one target is stored.

    `encode`: float32 [N, ...] and the cache's constants -> arrays by name. `decode`: the same arrays -> [N, ...].
    `levels`: codes are integers from -levels to levels, and each channel has its own range (see `to_codes`); None: no codes.
    """

    arrays: Mapping[str, StoredArray]
    encode: Callable[[np.ndarray, Constants], dict[str, np.ndarray]]
    decode: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    levels: int | None = None

    def bytes(self, shape: Sequence[int]) -> int:
        """Bytes of one row's target of this shape, before zstd."""
        return sum(np.dtype(a.dtype).itemsize * (1 if a.per_row else math.prod(shape)) for a in self.arrays.values())


def encode_logits_uint8(logits: np.ndarray) -> dict[str, np.ndarray]:
    """float [N,K] -> logits uint8 [N,K], scale and offset float32 [N].

    The error is at most scale / 2, plus the rounding of float32.
    Raises ReskdError for NaN, infinity, and a row whose range is too wide for float32.
    """
    rows = _finite("logits", logits).astype(np.float64)
    offset, highest = rows.min(axis=1), rows.max(axis=1)
    if (highest - offset).max(initial=0) > _FLOAT32_MAX or np.abs(rows).max(initial=0) > _FLOAT32_MAX:
        raise ReskdError("logits: the range of a row overflows float32.")
    offset = offset.astype(np.float32)
    # The scale of a constant row is positive too: we divide by it, and NaN means "not written".
    scale = np.maximum((highest - offset) / 255, SMALLEST_SCALE).astype(np.float32)
    codes = np.rint((rows - offset[:, None]) / scale[:, None].astype(np.float64))
    return {"logits": codes.clip(0, 255).astype(np.uint8), "scale": scale, "offset": offset}


def decode_logits_uint8(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """-> logits float32 [N,K]; a row is NaN if its scale is NaN."""
    logits = arrays["logits"].astype(np.float32)
    logits *= arrays["scale"][:, None]
    logits += arrays["offset"][:, None]
    return logits


def encode_float16(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """float [N, ...] -> the same as float16. Raises ReskdError for NaN, infinity and values that float16 can't hold."""
    with np.errstate(over="ignore"):
        stored = _finite(name, values).astype(np.float16)
    if not is_finite(stored):
        largest = float(np.abs(values).max())
        raise ReskdError(f"{name}: {largest:g} overflows float16, which ends at 65504.")
    return {name: stored}


def to_codes(reduced: np.ndarray, constants: Constants, codec: str = "int8") -> np.ndarray:
    """Reduced maps y, float [..., d] -> integer codes [..., d].

    A code is (y - offset) / scale, rounded, and clipped to the codec's levels. Each channel has its own scale and offset.
    """
    levels, dtype = CODECS["features"][codec].levels, CODECS["features"][codec].arrays["features"].dtype
    with np.errstate(over="ignore"):  # a channel that never varied has a tiny scale
        codes = np.rint((np.asarray(reduced, np.float32) - constants["offset"]) / constants["scale"])
    return codes.clip(-levels, levels).astype(dtype)


def from_stored(stored: np.ndarray, constants: Constants) -> np.ndarray:
    """Stored maps, integer codes or float16 [..., d] -> y, float32 [..., d]."""
    values = stored.astype(np.float32)
    is_code = np.issubdtype(stored.dtype, np.integer)
    return values * constants["scale"] + constants["offset"] if is_code else values


def scale_and_offset(low: np.ndarray, high: np.ndarray, codec: str = "int8") -> dict[str, np.ndarray]:
    """ "scale" and "offset", float32 [d]: with them, the codes of a channel reach from `low` to `high` [d]."""
    levels = CODECS["features"][codec].levels
    low, high = low.astype(np.float64), high.astype(np.float64)
    scale = np.maximum((high - low) / (2 * levels), SMALLEST_SCALE).astype(np.float32)
    # The lowest value has a code of its own: the zeros of a map after a ReLU stay zeros.
    return {"scale": scale, "offset": (low + levels * scale.astype(np.float64)).astype(np.float32)}


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinity. Integer codes: whether none is the fill value, that is, all were written.

    For float16, the exponent's bits are compared, which is several times faster than np.isfinite.
    """
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


def integer_codec(name: str, levels: int, dtype: str = "int8") -> Codec:
    """The codec `name` of feature maps: codes from -levels to levels, one byte each. Fewer levels: fewer bytes after zstd.

    `decode` returns the codes, since a block of float32 maps is large. The loss turns codes into float32 on its device.
    """
    return Codec(
        arrays={"features": StoredArray(dtype, float(np.iinfo(dtype).min))},  # the lowest integer is never a code
        encode=lambda maps, constants: {"features": to_codes(_finite("features", maps), constants, name)},
        decode=lambda arrays: arrays["features"],
        levels=levels,
    )


CODECS: dict[str, dict[str, Codec]] = {
    "logits": {
        "uint8": Codec(
            arrays={
                "logits": StoredArray("uint8", 0),
                "scale": StoredArray("float32", np.nan, per_row=True),
                "offset": StoredArray("float32", np.nan, per_row=True),
            },
            encode=lambda logits, constants: encode_logits_uint8(logits),
            decode=decode_logits_uint8,
        ),
        "float16": Codec(
            arrays={"logits": StoredArray("float16", np.nan)},
            encode=lambda logits, constants: encode_float16("logits", logits),
            decode=lambda arrays: arrays["logits"].astype(np.float32),
        ),
    },
    "features": {
        "float16": Codec(
            arrays={"features": StoredArray("float16", np.nan)},
            encode=lambda maps, constants: encode_float16("features", maps),
            decode=lambda arrays: arrays["features"],
        ),
        "int8": integer_codec("int8", 127),
        "int4": integer_codec("int4", 7),
        "int3": integer_codec("int3", 3),
    },
}


def codec_of(target: str, name: str) -> Codec:
    """The codec `name` of the target "logits" or "features". Raises ReskdError for an unknown target or name."""
    if name not in CODECS.get(target, {}):
        choices = ", ".join(f"{t}: {', '.join(codecs)}" for t, codecs in CODECS.items())
        raise ReskdError(f"target {target!r} can't be stored as {name!r}: choose one of {choices}.")
    return CODECS[target][name]
