"""What timm's networks do between the pooling and the classifier: a norm that our head takes over, or what it can't have."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from cache.errors import ReskdError
from stages.models.timm_maps import usual_size
from stages.models.tsn import timm_arguments
from stages.models.video_model import Head, VideoModel

if TYPE_CHECKING:  # the config reads the table of architectures
    from stages.models.config import ModelConfig

TOLERANCE = 1e-4  # of the largest logit


def has_head_norm(backbone: nn.Module) -> bool:
    """Whether the network has a norm over the channels between its pooling and its classifier, in timm's place for it."""
    norm = getattr(getattr(backbone, "head", None), "norm", None)
    return isinstance(norm, nn.LayerNorm) or (isinstance(norm, nn.GroupNorm) and norm.num_groups == 1)


def take_head_norm(backbone: nn.Module, name: str) -> nn.LayerNorm:
    """Remove this norm from the network, and return it as a LayerNorm with the same weights.

    On a pooled map, timm's norms for maps and a GroupNorm of one group are LayerNorms.
    Raises ReskdError if the network, `name` in messages, has none.
    """
    if not has_head_norm(backbone):
        raise ReskdError(
            f"backbone {name!r} has no norm between its pooling and its classifier: set model.head_norm: false"
        )
    norm = backbone.head.norm
    taken = nn.LayerNorm(backbone.num_features, norm.eps, bias=norm.bias is not None, device=norm.weight.device)
    taken.load_state_dict(norm.state_dict(), assign=True)
    backbone.head.norm = nn.Identity()
    return taken.requires_grad_(True)


@torch.no_grad()
def head_fault(head: Head, weights: dict[str, Tensor], config: ModelConfig, file: dict[str, Tensor]) -> str | None:
    """Why `head` with these weights (names that begin with `head.`) isn't the head of timm's network; None if it is.

    Both score random maps. `file`: the tensors of timm's network under timm's names.
    """
    name = config.backbone
    with torch.device("meta"):
        net = timm.create_model(name, **_whole_arguments(config, weights)).eval()
    ours = copy.deepcopy(head).eval()
    ours.load_state_dict({key.removeprefix("head."): tensor for key, tensor in weights.items()})
    width = head.fc.in_features
    maps = (
        torch.randn(2, width, 7, 7, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0.5, 2, width)[:, None, None]
    )
    try:
        net.load_state_dict({key: tensor.float() for key, tensor in file.items()}, strict=False, assign=True)
        theirs = net.forward_head(maps)
        found = ours(maps.permute(0, 2, 3, 1)[:, None])
        same = torch.allclose(found, theirs, rtol=0, atol=TOLERANCE * theirs.abs().max().item())
    except Exception:  # timm's heads are of many kinds, and any error means that ours is another one
        same = False
    if same:
        return None
    if head.norm is None and has_head_norm(net):
        return f"has a classifier behind a norm of {name}: set model.head_norm: true"
    return f"has a classifier that can't be kept, since {name} does more than a mean before it: give one of another network"


@torch.no_grad()
def pooling_fault(
    model: VideoModel, weights: dict[str, Tensor], config: ModelConfig, file: dict[str, Tensor]
) -> str | None:
    """Why `model`, with `pooling: own` and these weights, isn't timm's whole network; None if it is. Both score a picture.

    The backbone gets the weights. `file`: the tensors of timm's network under timm's names.
    """
    net = timm.create_model(config.backbone, **_whole_arguments(config, weights)).eval()
    pictures = torch.randn(1, 3, *usual_size(net), generator=torch.Generator().manual_seed(0))
    body = {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    model.backbone.load_state_dict(body)
    training = model.training
    try:
        net.load_state_dict({name: tensor.float() for name, tensor in file.items()})
        theirs, pooled = net(pictures), model.eval().encode(model.backbone, pictures[:, None]).pooled
        found = functional.linear(pooled, weights["head.fc.weight"].float(), weights["head.fc.bias"].float())
        same = torch.allclose(found, theirs, rtol=0, atol=TOLERANCE * theirs.abs().max().item())
    except Exception:  # as above
        same = False
    model.train(training)
    name = config.backbone
    return (
        None
        if same
        else f"has a classifier that can't be kept, since {name} is more than its pooling and a linear layer"
    )


def _whole_arguments(config: ModelConfig, weights: dict[str, Tensor]) -> dict:
    arguments = timm_arguments(config) | {"num_classes": len(weights["head.fc.weight"])}
    if "global_pool" not in config.args:
        arguments.pop("global_pool", None)  # timm's own
    return arguments
