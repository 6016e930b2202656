"""Tensors of a checkpoint in the shapes of a model: 2D weights for 3D, and what is computed and not learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.slowonly import inflate_weight

INDEX, MASK = ".attn.relative_position_index", ".attn_mask"  # computed from the window's size, not learned


def fit_to_model(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The tensors in the shapes of the model, and whether 2D weights were inflated. A tensor that doesn't fit stays.

    Convolutions are repeated in time and divided by their length in time. The position biases of a 2D Swin are repeated for
    each distance in time. The position indices and masks in a file must be those of the model's windows, but may be
    absent. BatchNorm's `num_batches_tracked` may be absent from the whole file, as before torch 0.4.1: no average uses it.
    """
    wanted, patch = model.state_dict(), "backbone.patch_embed.proj.weight"
    swin_2d = patch in wanted and wanted[patch].dim() == 5 and patch in tensors and tensors[patch].dim() == 4
    fitted, inflated = {}, swin_2d
    for name, tensor in tensors.items():
        target = wanted.get(name)
        if name.endswith(MASK) and set(tensor.unique().tolist()) <= {0.0, -100.0}:
            continue
        if name.endswith(INDEX) and target is not None:
            _check_index(name, tensor, model, swin_2d)
            tensor = target
        elif swin_2d and name.endswith(".relative_position_bias_table") and target is not None:
            t, h, w = model.get_submodule(name.rpartition(".")[0]).window_size
            if len(tensor) == (2 * h - 1) * (2 * w - 1):
                tensor = tensor.repeat(2 * t - 1, 1)
        elif tensor.dim() == 4 and target is not None and target.dim() == 5:
            tensor, inflated = inflate_weight(tensor, target.shape[2]), True
        fitted[name] = tensor
    untracked = not any(name.endswith(".num_batches_tracked") for name in fitted)
    absent = {
        n: v for n, v in wanted.items() if n.endswith(INDEX) or (untracked and n.endswith(".num_batches_tracked"))
    }
    return absent | fitted, inflated


def _check_index(name: str, tensor: Tensor, model: nn.Module, swin_2d: bool) -> None:
    """ReskdError unless the index of relative positions is that of the model's window, or, of a 2D Swin, of one frame."""
    attention = model.get_submodule(name.rpartition(".")[0])
    t, h, w = attention.window_size
    wanted = attention.relative_position_index.view(t, h * w, t, h * w)
    wanted = wanted[0, :, 0] - (t - 1) * (2 * h - 1) * (2 * w - 1) if swin_2d else wanted
    if tensor.numel() != wanted.numel() or not torch.equal(tensor.flatten().to(wanted), wanted.flatten()):
        raise ReskdError(
            f"{name} of the checkpoint is not the index of a window of {[t, h, w]}: the checkpoint is of another Swin"
        )
