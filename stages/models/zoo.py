"""Networks by name: those of upstream and of torchvision, their configs, and the protocols that they are evaluated with."""

import difflib

from cache.errors import ReskdError
from stages.models.config import ModelConfig
from stages.models.torchvision_video import TRAINED


def _of_torchvision(name: str, frames: int) -> ModelConfig:
    mean, std, _ = TRAINED[name]
    return ModelConfig(arch="torchvision_video", backbone=name, num_classes=400, num_frames=frames, mean=mean, std=std)


ZOO: dict[str, ModelConfig] = {
    "tsn_r50": ModelConfig(arch="tsn", backbone="resnet50", num_classes=400, num_frames=16),
    "tsn_r152": ModelConfig(arch="tsn", backbone="resnet152", num_classes=400, num_frames=16),
    "tsm_r50": ModelConfig(arch="tsm", backbone="resnet50", num_classes=400, num_frames=8),
    "slowonly_r50": ModelConfig(arch="slowonly", backbone="resnet50", num_classes=400, num_frames=8),
    "swin_s": ModelConfig(arch="swin", backbone="swin3d_s", num_classes=400, num_frames=32, drop_path=0.1),
    "swin_b": ModelConfig(arch="swin", backbone="swin3d_b", num_classes=400, num_frames=32, drop_path=0.2),
    "r2plus1d_18": _of_torchvision("r2plus1d_18", 16),
    "s3d": _of_torchvision("s3d", 128),
    "mvit_v2_s": _of_torchvision("mvit_v2_s", 16),
}

PROTOCOLS: dict[str, str] = {  # temporal clips x spatial crops, as in EvaluateConfig.protocol
    "tsn_r50": "1x1",
    "tsn_r152": "1x1",
    "tsm_r50": "2x3",
    "slowonly_r50": "10x3",
    "swin_s": "4x3",
    "swin_b": "4x3",
    "r2plus1d_18": "5x1",
    "s3d": "1x1",
    "mvit_v2_s": "5x1",
}


def named_model(name: str) -> ModelConfig:
    """The config of a network in the zoo. Raises ReskdError for an unknown name."""
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ReskdError(f"model {name!r} is not in the zoo: {hint}it has {', '.join(ZOO)}")
    return ZOO[name]
