"""The scores of views, and what is averaged over the views of a video: probabilities, logits or features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Average = Literal["prob", "logit", "feature"]


def view_scores(
    model: torch.nn.Module, clips: Tensor, *, amp: bool, average: Average, forward: int | None = None
) -> Tensor:
    """What is averaged over views: each view's softmax ("prob"), logits or mean feature, float64 [N,K or D].

    `clips`: uint8 [N,T,3,S,S] on the model's device, `forward` of them at a time. `amp`: bfloat16 autocast.
    In float32, several sure answers would be equal to 1.
    """
    if average == "feature" and not model.head.takes_map:
        average = "logit"  # the same: behind the network's own pooling stands a linear layer
    outputs = []
    for part in clips.split(forward or len(clips)):
        with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=amp):
            output = model(part)
        outputs.append(output.features.float().mean((1, 2, 3)) if average == "feature" else output.logits.float())
    scores = torch.cat(outputs).double()
    return scores.softmax(-1) if average == "prob" else scores


def averaged(model: torch.nn.Module, means: Tensor, average: Average) -> Tensor:
    """Probabilities, float64 [N,K], of means of `view_scores` over views, [N,K or D] on the model's device."""
    if average == "feature" and model.head.takes_map:
        means = model.head(means.float()[:, None, None, None]).double()  # as a map of one time step and one position
    return means if average == "prob" else means.softmax(-1)
