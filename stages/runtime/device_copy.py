"""Copies to a CUDA device on a stream of their own: what is pinned travels while the device computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Copy = Callable[[Tensor], Tensor]


def copier(device: torch.device) -> Copy:
    """A function that copies a tensor to `device`. On a CPU, which has nothing to copy, it returns the tensor.

    On CUDA it doesn't wait for pinned memory, and what is computed next on the current stream waits for the copy.
    """
    if device.type != "cuda":
        return lambda tensor: tensor.to(device)
    stream = torch.cuda.Stream(device)

    def copy(tensor: Tensor) -> Tensor:
        main = torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            copied = tensor.to(device, non_blocking=True)
        main.wait_stream(stream)
        copied.record_stream(main)  # else `stream` could give its memory to a later copy, before it is used
        return copied

    return copy
