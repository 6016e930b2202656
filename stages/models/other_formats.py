"""Checkpoints of other programs: whose they are, and how their tensors are called here.

Ours: `backbone.` and the names of timm's (tsn, tsm, slowonly) or torchvision's net (swin), `head.fc.` the classifier.

| theirs                                                      | ours                                                |
|-------------------------------------------------------------|-----------------------------------------------------|
| mmaction2 `backbone.X`, `cls_head.fc_cls.`                  | `backbone.X`, `head.fc.`                            |
| rkd `backbone.low_res_path.X`, `cls_head.fc_cls.`           | the student's, as of mmaction2                      |
| rkd `backbone.high_res_path.X`, `cls_head.fc_cls_t.` (Swin) | the teacher's                                       |
| `conv1.conv.`, `conv1.conv.net.` (TSM), `conv1.bn.`         | `conv1.`, `conv1.`, `bn1.`, and so 2 and 3          |
| `downsample.conv.`, `downsample.bn.`                        | `downsample.0.`, `downsample.1.`                    |
| `layers.i.blocks.j.`, in it `mlp.fc1.`, `mlp.fc2.`          | `features.2i.j.`, `mlp.0.`, `mlp.3.`                |
| `layers.i.downsample.` (Microsoft's, mmaction2's, old timm) | `features.2i+1.`                                    |
| `layers.i.downsample.` (timm, where layer 0 has none)       | `features.2i-1.`                                    |
| `norm3.` (mmaction2 1.x)                                    | `norm.`                                             |
| torchvision's 2D Swin `features.0.0.`, `.0.2.`, `features.k`| `patch_embed.proj.`, `.norm.`, `features.k-1.`      |
| torchvision, timm `X`; `fc.`, `head.fc.`, `head.`, ...      | `backbone.X`; `head.fc.`                            |
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.config import ModelConfig
from stages.models.slowonly import inflate_weight

CONV_MODULE = (
    (re.compile(r"\bdownsample\.conv\."), "downsample.0."),
    (re.compile(r"\bdownsample\.bn\."), "downsample.1."),
    (re.compile(r"\bconv(\d)\.conv\.(net\.)?"), r"conv\1."),
    (re.compile(r"\bconv(\d)\.bn\."), r"bn\1."),
)
INDEX, MASK = ".attn.relative_position_index", ".attn_mask"  # made from the window's size, not learned


def recognise(names: Collection[str]) -> tuple[str, ...]:
    """The formats that a file with tensors of these names may be in, the likelier first."""
    if any(name.startswith(("backbone.low_res_path.", "backbone.high_res_path.")) for name in names):
        return ("rkd",)
    if any(name.startswith(("backbone.", "cls_head.")) for name in names):
        return ("mmaction2",)
    if "layer1.0.conv1.weight" in names:
        return ("torchvision", "timm")  # one naming
    if any(re.fullmatch(r"features\.\d+\.\d+\.attn\.qkv\.weight", name) for name in names):
        return ("torchvision",)
    return ("timm",)


def has_shift(names: Collection[str]) -> bool:
    """Whether mmaction2 wrote them of a net with a temporal shift."""
    return any(re.search(r"\bconv\d\.conv\.net\.", name) for name in names)


def to_ours(tensors: dict[str, Tensor], format: str, part: str, config: ModelConfig, net: nn.Module) -> dict:
    """Tensors of a foreign file under our names; what no rule knows keeps its own name, for a strict loader to refuse.

    `net` is the backbone of the model of `config`: a net of timm says how its classifier is called.
    Raises ReskdError where the file was trained with another normalisation, or two of its names are one here.
    """
    if format in ("mmaction2", "rkd"):
        tensors = _rkd_part(tensors, part) if format == "rkd" else tensors
        tensors = _check_normalisation(tensors, config)
        body, fc = "backbone.", "cls_head.fc_cls."
    else:
        body, fc = "", _classifier(tensors, net)
    backbone = {name.removeprefix(body) for name in tensors if name.startswith(body) and not name.startswith(fc)}
    table = _backbone_names(backbone, tensors, config.arch == "swin")
    ours = {}
    for name, tensor in tensors.items():
        if name.startswith(fc):
            new = "head.fc." + name.removeprefix(fc)
        else:
            new = "backbone." + table[name.removeprefix(body)] if name.startswith(body) else name
        if new in ours:
            raise ReskdError(f"two tensors of the checkpoint are both {new}, one of them {name}: it mixes two namings")
        ours[new] = tensor
    return ours


def _rkd_part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """One of the two nets of an rkd container, as mmaction2 would have written it alone."""
    mine, other = ("low", "high") if part == "student" else ("high", "low")
    fc = {"student": "cls_head.fc_cls.", "teacher": "cls_head.fc_cls_t."}
    kept = {}
    for name, tensor in tensors.items():
        if name.startswith((f"backbone.{other}_res_path.", fc["teacher" if part == "student" else "student"])):
            continue
        name = name.replace(f"backbone.{mine}_res_path.", "backbone.").replace(fc[part], "cls_head.fc_cls.")
        kept[name] = tensor
    return kept


def _check_normalisation(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Without the pixel statistics that some of mmengine's models save; ReskdError where they aren't the config's."""
    for what in ("mean", "std"):
        theirs = tensors.get(f"data_preprocessor.{what}")
        if theirs is not None:
            theirs = tuple(round(v / 255, 4) for v in theirs.flatten().tolist())
            check_normalisation(what, theirs, getattr(config, what))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("data_preprocessor.")}


def check_normalisation(what: str, theirs: tuple[float, ...], ours: tuple[float, ...]) -> None:
    if len(theirs) != 3 or any(abs(a - b) > 1e-3 for a, b in zip(theirs, ours, strict=True)):
        raise ReskdError(
            f"the checkpoint was trained with {what} {list(theirs)} of the pixels, model.{what} is {list(ours)}: "
            f"set model.{what} to its own"
        )


def _classifier(names: Collection[str], net: nn.Module) -> str:
    """Prefix of the classifier in a file of torchvision's or timm's; one that no name has, where there is none."""
    own = getattr(net, "pretrained_cfg", None) or {}
    for name in (own.get("classifier"), "fc", "head.fc", "head", "classifier"):
        if isinstance(name, str) and f"{name}.weight" in names and f"{name}.weight" not in net.state_dict():
            return f"{name}."
    return "no classifier."


def _backbone_names(names: set[str], tensors: Collection[str], swin: bool) -> dict[str, str]:
    """Their name -> ours, both without `backbone.`."""
    if "conv1.conv.weight" in names:  # mmcv's ConvModule
        return {name: _of_conv_module(name) for name in names}
    if not swin:
        return {name: name for name in names}
    if "features.0.2.weight" in names:  # torchvision's 2D one
        return {name: _of_flat_swin(name) for name in names}
    at_end = any(name.startswith("layers.0.downsample.") for name in names)
    last = max((int(name.split(".")[1]) for name in names if re.match(r"layers\.\d+\.", name)), default=0)
    return {name: _of_swin(name, at_end, last) for name in names}


def _of_conv_module(name: str) -> str:
    for pattern, new in CONV_MODULE:
        name = pattern.sub(new, name)
    return name


def _of_flat_swin(name: str) -> str:
    for theirs, ours in (("features.0.0.", "patch_embed.proj."), ("features.0.2.", "patch_embed.norm.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return re.sub(r"^features\.(\d+)\.", lambda m: f"features.{int(m[1]) - 1}.", name)


def _of_swin(name: str, at_end: bool, last: int) -> str:
    if found := re.fullmatch(r"layers\.(\d+)\.blocks\.(.*)", name):
        rest = found[2].replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
        return f"features.{2 * int(found[1])}.{rest}"
    if found := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return f"features.{2 * int(found[1]) + (1 if at_end else -1)}.{found[2]}"
    return re.sub(rf"^norm{last}\.", "norm.", name)


def fit(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Tensors under our names as the model has them, and whether 2D ones were inflated; what doesn't fit stays.

    Convolutions are repeated in time and divided by its length, position biases of a 2D Swin repeated for every distance
    in time. Position indices and masks are compared with those of the model's windows, and may be absent.
    BatchNorm's `num_batches_tracked` may be absent from the whole file, as before torch 0.4.1: no average here uses it.
    """
    own, patch = model.state_dict(), "backbone.patch_embed.proj.weight"
    flat = patch in own and own[patch].dim() == 5 and patch in tensors and tensors[patch].dim() == 4
    fitted, inflated = {}, flat
    for name, tensor in tensors.items():
        there = own.get(name)
        if name.endswith(MASK) and set(tensor.unique().tolist()) <= {0.0, -100.0}:
            continue
        if name.endswith(INDEX) and there is not None:
            _check_index(name, tensor, model, flat)
            tensor = there
        elif flat and name.endswith(".relative_position_bias_table") and there is not None:
            t, h, w = model.get_submodule(name.rpartition(".")[0]).window_size
            if len(tensor) == (2 * h - 1) * (2 * w - 1):
                tensor = tensor.repeat(2 * t - 1, 1)
        elif tensor.dim() == 4 and there is not None and there.dim() == 5:
            tensor, inflated = inflate_weight(tensor, there.shape[2]), True
        fitted[name] = tensor
    untracked = not any(name.endswith(".num_batches_tracked") for name in fitted)
    absent = {n: v for n, v in own.items() if n.endswith(INDEX) or (untracked and n.endswith(".num_batches_tracked"))}
    return absent | fitted, inflated


def _check_index(name: str, tensor: Tensor, model: nn.Module, flat: bool) -> None:
    """ReskdError unless a file's index of relative positions is that of the model's window, or of one frame of it."""
    attention = model.get_submodule(name.rpartition(".")[0])
    t, h, w = attention.window_size
    wanted = attention.relative_position_index.view(t, h * w, t, h * w)
    wanted = wanted[0, :, 0] - (t - 1) * (2 * h - 1) * (2 * w - 1) if flat else wanted
    if tensor.numel() != wanted.numel() or not torch.equal(tensor.flatten().to(wanted), wanted.flatten()):
        raise ReskdError(f"{name} of the checkpoint is not the index of a window of {[t, h, w]}: it is another Swin's")
