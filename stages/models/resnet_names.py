"""ResNets of programs that have names of their own: from their names to torchvision's.

| program                                                         | torchvision's name                       |
|-----------------------------------------------------------------|------------------------------------------|
| MIT's TSN and TSM `base_model.X`, `new_fc.`                     | `X`, `fc.`                               |
| MIT's TSM `conv1.net.` (the input of this convolution is shifted)| `conv1.`                                |
| pytorchvideo `blocks.0.conv.`, `blocks.0.norm.`                 | `conv1.`, `bn1.`                         |
| pytorchvideo `blocks.i.res_blocks.j.branch2.conv_a.`, `norm_a.` | `layeri.j.conv1.`, `bn1.`; b: 2, c: 3    |
| pytorchvideo `blocks.i.res_blocks.j.branch1_conv.`, `_norm.`    | `layeri.j.downsample.0.`, `downsample.1.`|
| pytorchvideo `blocks.5.proj.`                                   | `fc.`                                    |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import Tensor

from cache.errors import ReskdError

SHIFT = re.compile(r"\b(layer\d+\.\d+)\.conv\d\.(?:conv\.)?net\.")  # mmaction2's, MIT's
BRANCH2 = re.compile(r"blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.(conv|norm)_([abc])\.(.*)")
BRANCH1 = re.compile(r"blocks\.(\d+)\.res_blocks\.(\d+)\.branch1_(conv|norm)\.(.*)")


def is_mit(names: Collection[str]) -> bool:
    """Whether these are the names of MIT's program for TSN and TSM."""
    return any(name.startswith("base_model.") for name in names)


def is_pytorchvideo(names: Collection[str]) -> bool:
    """Whether these are pytorchvideo's names for a ResNet."""
    return any(re.match(r"blocks\.\d+\.res_blocks\.", name) for name in names)


def shifted_blocks(names: Collection[str]) -> set[str]:
    """The blocks, such as layer1.0, whose names in a file of mmaction2 or MIT tell of a temporal shift."""
    return {match[1] for name in names if (match := SHIFT.search(name))}


def to_torchvision_names(tensors: dict[str, Tensor], format: str) -> dict[str, Tensor]:
    """The tensors of a ResNet of "mit" or "pytorchvideo" under torchvision's names. A name without a rule stays.

    Raises ReskdError if two tensors get one name.
    """
    return renamed(tensors, _from_mit if format == "mit" else _from_pytorchvideo)


def renamed(tensors: dict[str, Tensor], rule: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors under the names that `rule` gives them. Raises ReskdError if two tensors get one name."""
    found = {}
    for name, tensor in tensors.items():
        new = rule(name)
        if new in found:
            raise ReskdError(f"two tensors of the checkpoint become {new}, one of them is {name}: it mixes two namings")
        found[new] = tensor
    return found


def _from_mit(name: str) -> str:
    if name.startswith("new_fc."):
        return "fc." + name.removeprefix("new_fc.")
    return re.sub(r"\bconv1\.net\.", "conv1.", name.removeprefix("base_model."))


def _from_pytorchvideo(name: str) -> str:
    for old, new in (("blocks.0.conv.", "conv1."), ("blocks.0.norm.", "bn1."), ("blocks.5.proj.", "fc.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    if match := BRANCH2.fullmatch(name):
        stage, block, kind, letter, leaf = match.groups()
        return f"layer{stage}.{block}.{'conv' if kind == 'conv' else 'bn'}{'abc'.index(letter) + 1}.{leaf}"
    if match := BRANCH1.fullmatch(name):
        stage, block, kind, leaf = match.groups()
        return f"layer{stage}.{block}.downsample.{0 if kind == 'conv' else 1}.{leaf}"
    return name
