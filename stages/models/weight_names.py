"""The names of weights in checkpoints of other programs, and their names in this program.

In this program: `backbone.` and timm's name (tsn, tsm, slowonly) or torchvision's name (swin); `head.fc.` (classifier).

| other program                                               | this program                                        |
|-------------------------------------------------------------|-----------------------------------------------------|
| mmaction2 `backbone.X`, `cls_head.fc_cls.`                  | `backbone.X`, `head.fc.`                            |
| rkd `backbone.low_res_path.X`, `cls_head.fc_cls.`           | the student, as mmaction2                           |
| rkd `backbone.high_res_path.X`, `cls_head.fc_cls_t.` (Swin) | the teacher, as mmaction2                           |
| `conv1.conv.`, `conv1.conv.net.` (TSM), `conv1.bn.`         | `conv1.`, `conv1.`, `bn1.`; the same for 2 and 3    |
| `downsample.conv.`, `downsample.bn.`                        | `downsample.0.`, `downsample.1.`                    |
| `layers.i.blocks.j.`, with `mlp.fc1.`, `mlp.fc2.`           | `features.2i.j.`, `mlp.0.`, `mlp.3.`                |
| `layers.i.downsample.` (Microsoft, mmaction2, old timm)     | `features.2i+1.`                                    |
| `layers.i.downsample.` (timm, where layer 0 has none)       | `features.2i-1.`                                    |
| `norm3.` (mmaction2 1.x)                                    | `norm.`                                             |
| torchvision's 2D Swin `features.0.0.`, `.0.2.`, `features.k`| `patch_embed.proj.`, `.norm.`, `features.k-1.`      |
| torchvision, timm `X`; `fc.`, `head.fc.`, `head.`, ...      | `backbone.X`; `head.fc.`                            |
| timm `head.norm.` (with model.head_norm)                    | `head.norm.`                                        |
| MIT's TSN and TSM, pytorchvideo                             | as torchvision: see `resnet_names`                  |
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor, nn

from cache.errors import ReskdError
from stages.models.config import ModelConfig
from stages.models.resnet_names import is_mit, is_pytorchvideo, renamed, to_torchvision_names

CONV_MODULE = (
    (re.compile(r"\bdownsample\.conv\."), "downsample.0."),
    (re.compile(r"\bdownsample\.bn\."), "downsample.1."),
    (re.compile(r"\bconv(\d)\.conv\.(net\.)?"), r"conv\1."),
    (re.compile(r"\bconv(\d)\.bn\."), r"bn\1."),
)

# R(2+1)D, R3D and MC3; S3D; MViT
VIDEO_OF_TORCHVISION = {
    "layer1.0.conv1.0.weight",
    "layer1.0.conv1.0.0.weight",
    "features.0.0.0.weight",
    "conv_proj.weight",
}


def recognise_format(names: Collection[str]) -> tuple[str, ...]:
    """The formats that have tensors with these names, the more likely first."""
    if any(name.startswith(("backbone.low_res_path.", "backbone.high_res_path.")) for name in names):
        return ("rkd",)
    if any(name.startswith(("backbone.", "cls_head.")) for name in names):
        return ("mmaction2",)
    if is_mit(names):
        return ("mit",)
    if is_pytorchvideo(names):
        return ("pytorchvideo",)
    if "layer1.0.conv1.weight" in names:
        return ("torchvision", "timm")  # both have the same names
    if any(re.fullmatch(r"features\.\d+\.\d+\.attn\.qkv\.weight", name) for name in names):
        return ("torchvision",)
    if VIDEO_OF_TORCHVISION & {*names}:
        return ("torchvision",)
    return ("timm",)


def to_our_names(tensors: dict[str, Tensor], format: str, part: str, config: ModelConfig, net: nn.Module) -> dict:
    """The tensors of another program's file under this program's names. A name without a rule stays, and a strict loader
    refuses it.

    `net`: the backbone of the model of `config`. A network of timm knows the name of its classifier.
    Raises ReskdError if the file was trained with another normalisation, or if two tensors get one name.
    """
    if format in ("mmaction2", "rkd"):
        tensors = _rkd_part(tensors, part) if format == "rkd" else tensors
        tensors = _check_normalisation(tensors, config)
        body, fc = "backbone.", "cls_head.fc_cls."
    else:
        tensors = to_torchvision_names(tensors, format) if format in ("mit", "pytorchvideo") else tensors
        body, fc = "", classifier_prefix(tensors, net)
    backbone = {name.removeprefix(body) for name in tensors if name.startswith(body) and not name.startswith(fc)}
    table = _backbone_names(backbone, tensors, config.arch == "swin")

    def our_name(name: str) -> str:
        if name.startswith(fc):
            return "head.fc." + name.removeprefix(fc)
        if config.head_norm and name.startswith("head.norm."):
            return name
        return "backbone." + table[name.removeprefix(body)] if name.startswith(body) else name

    ours = renamed(tensors, our_name)
    weight = ours.get("head.fc.weight")
    if (
        config.arch == "torchvision_video" and weight is not None and weight.dim() == 5
    ):  # S3D's is a convolution of 1x1x1
        ours["head.fc.weight"] = weight.flatten(1)
    return ours


def _rkd_part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """One of the two networks of an rkd container, with the names of a checkpoint of mmaction2."""
    wanted, other = ("low", "high") if part == "student" else ("high", "low")
    fc = {"student": "cls_head.fc_cls.", "teacher": "cls_head.fc_cls_t."}
    kept = {}
    for name, tensor in tensors.items():
        if name.startswith((f"backbone.{other}_res_path.", fc["teacher" if part == "student" else "student"])):
            continue
        name = name.replace(f"backbone.{wanted}_res_path.", "backbone.").replace(fc[part], "cls_head.fc_cls.")
        kept[name] = tensor
    return kept


def _check_normalisation(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors without the pixel statistics of mmengine's models. ReskdError if the statistics aren't the config's."""
    for what in ("mean", "std"):
        stored = tensors.get(f"data_preprocessor.{what}")
        if stored is not None:
            stored = tuple(round(v / 255, 4) for v in stored.flatten().tolist())
            check_normalisation(what, stored, getattr(config, what))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("data_preprocessor.")}


def check_normalisation(what: str, stored: tuple[float, ...], config: tuple[float, ...]) -> None:
    """ReskdError unless the checkpoint's `what` ("mean" or "std" of RGB in 0..1) is that of the config."""
    if len(stored) != 3 or any(abs(a - b) > 1e-3 for a, b in zip(stored, config, strict=True)):
        raise ReskdError(
            f"the checkpoint was trained with {what} {list(stored)} of the pixels, model.{what} is {list(config)}: "
            f"set model.{what} to the checkpoint's"
        )


def classifier_prefix(names: Collection[str], net: nn.Module) -> str:
    """The prefix of the classifier in a file of torchvision or timm. A file without one gets a prefix that no name has."""
    timm_config = getattr(net, "pretrained_cfg", None) or {}
    for name in (
        timm_config.get("classifier"),
        "fc",
        "head.fc",
        "head",
        "classifier",
    ):  # torchvision_video says it, too
        if isinstance(name, str) and f"{name}.weight" in names and f"{name}.weight" not in net.state_dict():
            return f"{name}."
    return "no classifier."


def _backbone_names(names: set[str], tensors: Collection[str], swin: bool) -> dict[str, str]:
    """Name in the file -> name in this program, both without `backbone.`."""
    if "conv1.conv.weight" in names:  # mmcv's ConvModule
        return {name: _from_conv_module(name) for name in names}
    if not swin:
        return {name: name for name in names}
    if "features.0.2.weight" in names:  # torchvision's 2D Swin
        return {name: _from_swin_2d(name) for name in names}
    at_end = any(name.startswith("layers.0.downsample.") for name in names)
    last = max((int(name.split(".")[1]) for name in names if re.match(r"layers\.\d+\.", name)), default=0)
    return {name: _from_swin(name, at_end, last) for name in names}


def _from_conv_module(name: str) -> str:
    for pattern, new in CONV_MODULE:
        name = pattern.sub(new, name)
    return name


def _from_swin_2d(name: str) -> str:
    for old, new in (("features.0.0.", "patch_embed.proj."), ("features.0.2.", "patch_embed.norm.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return re.sub(r"^features\.(\d+)\.", lambda m: f"features.{int(m[1]) - 1}.", name)


def _from_swin(name: str, at_end: bool, last: int) -> str:
    """`at_end`: a layer ends with its downsampling, and doesn't begin with it. `last`: the number of the last layer."""
    if match := re.fullmatch(r"layers\.(\d+)\.blocks\.(.*)", name):
        rest = match[2].replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
        return f"features.{2 * int(match[1])}.{rest}"
    if match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return f"features.{2 * int(match[1]) + (1 if at_end else -1)}.{match[2]}"
    return re.sub(rf"^norm{last}\.", "norm.", name)
