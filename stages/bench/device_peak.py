"""What the device does at most: the multiply-adds of a matrix product. Those of a net are a share of them."""

from __future__ import annotations

import time

import torch

from stages.runtime.distributed import wait_for

SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices: large enough to keep the device busy
PRODUCTS, RUNS = 10, 5


def product_gmacs(device: torch.device, dtype: torch.dtype) -> float:
    """10^9 multiply-adds per second of square matrix products in `dtype`, by torch's threads or on the GPU, at best."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    _seconds(a, b)  # the first run is slower
    return max(PRODUCTS * side**3 / 1e9 / _seconds(a, b) for _ in range(RUNS))


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    wait_for(a.device)
    began = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ b
    wait_for(a.device)
    return time.perf_counter() - began
