"""What the device does at most: the multiply-adds of a matrix product. Those of a net are a share of them."""

from __future__ import annotations

import time

import torch

SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices: large enough to keep the device busy
PRODUCTS, RUNS = 10, 5


def product_gmacs(device: torch.device, dtype: torch.dtype) -> float:
    """10^9 multiply-adds per second of square matrix products in `dtype`, on all cores or on the GPU: the best of five runs."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return max(PRODUCTS * side**3 / 1e9 / _seconds(a, b) for _ in range(RUNS + 1))


def wait_for(device: torch.device) -> None:
    """Wait until the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    wait_for(a.device)
    began = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ b
    wait_for(a.device)
    return time.perf_counter() - began
