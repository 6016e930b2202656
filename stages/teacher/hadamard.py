"""Hadamard matrices: square, of +1 and -1, with orthogonal rows."""

from __future__ import annotations

import numpy as np

from cache.errors import ReskdError


def hadamard(width: int) -> np.ndarray:
    """A Hadamard matrix float64 [width, width].

    Sylvester's doubling [[H, H], [H, -H]] of a matrix of Paley's first construction (orders q + 1, with q a prime and
    q % 4 == 3). That gives most widths of networks: 2^k, 12 * 2^k, 20 * 2^k, 24 * 2^k and others.
    Raises ReskdError for a width that this doesn't give; the message names the nearest ones below and above.
    """
    order = _start(width)
    if order is None:
        below = next(n for n in range(width - 1, 0, -1) if _start(n))
        above = next(n for n in range(width + 1, 2 * width + 1) if _start(n))
        raise ReskdError(f"targets.features.rotate: hadamard: there is no Hadamard matrix of {width} channels here: set "
                         f"targets.features.dims to {below} or {above}, or leave `rotate` out")  # fmt: skip
    matrix = _paley(order) if order > 2 else np.array([[1.0, 1.0], [1.0, -1.0]])[:order, :order]
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def has_hadamard(width: int) -> bool:
    """Whether `hadamard` has a matrix of this width."""
    return _start(width) is not None


def _start(width: int) -> int | None:
    """The order that is doubled until it is `width`: the smallest one; None if there is none."""
    orders = [width >> k for k in range(width.bit_length()) if width % (1 << k) == 0]
    return next((n for n in reversed(orders) if n in (1, 2) or (n % 4 == 0 and _is_prime(n - 1))), None)


def _paley(order: int) -> np.ndarray:
    q = order - 1
    squares = {x * x % q for x in range(1, q)}
    character = np.array([0] + [1 if x in squares else -1 for x in range(1, q)])
    skew = np.zeros((order, order))
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[(np.arange(q)[None] - np.arange(q)[:, None]) % q]
    return skew + np.eye(order)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
