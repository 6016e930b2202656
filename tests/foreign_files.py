"""Checkpoints in other programs' layouts, made from torchvision's nets by rules written here, from ours apart."""

import copy

import torch
import torchvision
from torch import nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

from stages.models.config import ModelConfig

LAYERS, WIDTH = [1, 2, 1, 1], 16  # Bottlenecks of a small ResNet
RESNET = {"layers": LAYERS, "base_width": WIDTH}
SWIN = {"embed_dim": 16, "depths": [2, 1, 2], "num_heads": [1, 2, 2], "window_size": [2, 2, 2], "patch_size": [2, 4, 4]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def model_config(arch: str, classes: int | None = 5, **changes) -> ModelConfig:
    """Of the small nets below, on 4 frames."""
    net = {"backbone": "swin3d_t", "args": SWIN} if arch == "swin" else {"backbone": "resnet50", "args": RESNET}
    return ModelConfig(arch=arch, num_classes=classes, num_frames=4, **{**net, **changes})


def resnet(classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    block = torchvision.models.resnet.Bottleneck
    return lively(torchvision.models.ResNet(block, LAYERS, num_classes=classes, width_per_group=WIDTH))


def lively(net: nn.Module) -> nn.Module:
    """Statistics and biases that matter, so that a tensor in another's place is seen."""
    for name, parameter in net.named_parameters():
        if name.endswith(("bias", "bias_table")):
            nn.init.uniform_(parameter, -0.2, 0.2)
        elif parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            nn.init.uniform_(buffer, -0.2, 0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    return net.eval()


def swin(classes: int = 5, seed: int = 0) -> SwinTransformer3d:
    torch.manual_seed(seed)
    return lively(SwinTransformer3d(**SWIN, num_classes=classes))


class Shift(nn.Module):
    """The temporal shift from its description, frame by frame, for clips of four frames."""

    def forward(self, x):
        fold = x.shape[1] // 8
        moved = x.clone()
        for i in range(len(x)):
            moved[i, :fold] = 0 if i % 4 == 3 else x[i + 1, :fold]
            moved[i, fold : 2 * fold] = 0 if i % 4 == 0 else x[i - 1, fold : 2 * fold]
        return moved


def shifted(net: nn.Module) -> nn.Module:
    """A copy whose blocks shift the input of their first convolution."""
    net = copy.deepcopy(net)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            block.conv1 = nn.Sequential(Shift(), block.conv1)
    return net


def inflated(net: nn.Module, own_weights: bool) -> nn.Module:
    """A 3D copy: first convolutions of the last two stages look at 3 frames. Weights repeated / 3, or `own_weights`."""
    net = copy.deepcopy(net)
    for path, module in list(net.named_modules()):
        owner = net.get_submodule(path.rpartition(".")[0])
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Conv2d):
            t = 3 if path.startswith(("layer3", "layer4")) and name == "conv1" else 1
            k, s, p = module.kernel_size[0], module.stride[0], module.padding[0]
            conv = nn.Conv3d(module.in_channels, module.out_channels, (t, k, k), (1, s, s), (t // 2, p, p), bias=False)
            if not own_weights:
                conv.weight = nn.Parameter(torch.stack([module.weight.detach() / t] * t, 2))
            setattr(owner, name, conv)
        elif isinstance(module, nn.BatchNorm2d):
            norm = nn.BatchNorm3d(module.num_features)
            norm.load_state_dict(module.state_dict())
            setattr(owner, name, norm)
        elif isinstance(module, nn.MaxPool2d):
            setattr(owner, name, nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
    return net.eval()


@torch.no_grad()
def output(net: nn.Module, arch: str, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, K] and features [B, T', h, w, D] of a net above for uint8 clips [B, T, 3, H, W]."""
    x = (clips / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if arch == "swin":
        features = net.norm(net.features(net.patch_embed(x.transpose(1, 2))))
        return net.head(features.mean((1, 2, 3))), features
    x = x.transpose(1, 2) if arch == "slowonly" else x.flatten(0, 1)
    for name, module in net.named_children():
        if name not in ("avgpool", "fc"):
            x = module(x)
    features = (
        x.permute(0, 2, 3, 4, 1) if arch == "slowonly" else x.unflatten(0, clips.shape[:2]).permute(0, 1, 3, 4, 2)
    )
    return net.fc(features.mean((1, 2, 3))), features


def clips(frames: int = 4, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, frames, 3, size, size), dtype=torch.uint8, generator=generator)


def as_mmaction2(net: nn.Module, shift: bool = False, new: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of a recogniser of mmaction2 with this net; `new`: of version 1.x."""
    rename = _swin_as_mmaction2 if isinstance(net, SwinTransformer3d) else _resnet_as_mmaction2
    state = {rename(name, shift): tensor for name, tensor in net.state_dict().items()}
    if new:
        state = {name.replace("backbone.norm.", "backbone.norm2."): tensor for name, tensor in state.items()}
    return state


def _resnet_as_mmaction2(name: str, shift: bool) -> str:
    if name.startswith("fc."):
        return "cls_head.fc_cls." + name[3:]
    *path, module, leaf = name.split(".")
    if module in ("0", "1") and path[-1] == "downsample":
        module = "conv" if module == "0" else "bn"
    elif module.startswith("bn"):
        module = f"conv{module[-1]}.bn"
    elif module == "conv1" and path and shift:
        module = "conv1.conv.net"
    else:
        module += ".conv"
    return ".".join(["backbone", *path, module, leaf])


def _swin_as_mmaction2(name: str, _shift: bool) -> str:
    if name.startswith("head."):
        return "cls_head.fc_cls." + name[5:]
    parts = name.split(".")
    if parts[0] != "features":
        return "backbone." + name
    stage, odd = divmod(int(parts[1]), 2)
    if odd:
        return ".".join(["backbone.layers", str(stage), "downsample", *parts[2:]])
    rest = ".".join(parts[3:]).replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
    return f"backbone.layers.{stage}.blocks.{parts[2]}.{rest}"


def as_rkd(student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor], teachers_head: bool) -> dict:
    """Upstream's container of two nets in mmaction2's layout."""
    state = {}
    for path, net in (("low_res_path", student), ("high_res_path", teacher)):
        for name, tensor in net.items():
            if name.startswith("backbone."):
                state[name.replace("backbone", f"backbone.{path}")] = tensor
    for name in ("weight", "bias"):
        state[f"cls_head.fc_cls.{name}"] = student[f"cls_head.fc_cls.{name}"]
        if teachers_head:
            state[f"cls_head.fc_cls_t.{name}"] = teacher[f"cls_head.fc_cls.{name}"]
    return state


PYTORCHVIDEO = {"conv1": "branch2.conv_a", "bn1": "branch2.norm_a", "conv2": "branch2.conv_b", "bn2": "branch2.norm_b",
                "conv3": "branch2.conv_c", "bn3": "branch2.norm_c", "downsample.0": "branch1_conv",
                "downsample.1": "branch1_norm"}  # fmt: skip


def as_pytorchvideo(net: nn.Module) -> dict:
    """The names in a file of pytorchvideo, of the stem, the stages and the head in `blocks`."""
    state = {}
    for name, tensor in net.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module in ("conv1", "bn1", "fc"):
            new = {"conv1": "0.conv", "bn1": "0.norm", "fc": "5.proj"}[module]
        else:
            stage, block, part = module.removeprefix("layer").split(".", 2)
            new = f"{stage}.res_blocks.{block}.{PYTORCHVIDEO[part]}"
        state[f"blocks.{new}.{leaf}"] = tensor
    return {"model_state": state}
