"""Small versions of every architecture, and clips for them."""

import torch

from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.video_model import VideoModel

RESNET = {"channels": [16, 32, 64, 64], "layers": [1, 1, 1, 1], "output_stride": 8}
SWIN = {"embed_dim": 32, "depths": [1, 2], "num_heads": [2, 4], "window_size": [2, 3, 3], "patch_size": [2, 4, 4]}
ARCHS = ["tsn", "tsm", "slowonly", "swin"]


def config(arch="tsn", backbone="resnet50", args=None, **changes) -> ModelConfig:
    changes = {"num_classes": 5, "num_frames": 3, **changes}
    return ModelConfig(arch=arch, backbone=backbone, args=args or {}, **changes)


def small(arch="tsm", args=None, **changes) -> VideoModel:
    """64 channels, an eighth of the size (rounded up): [B, 3, s, s, 64]; a Swin has half the frames."""
    if arch == "swin":
        return build_model(config(arch, "swin3d_t", {**SWIN, **(args or {})}, **changes))
    return build_model(config(arch, "resnet18", {**RESNET, **(args or {})}, **changes))


def lively(arch, args=None, **changes) -> VideoModel:
    """One whose every weight matters from the start."""
    own = {} if arch == "swin" else {"zero_init_last": False}
    return small(arch, own | (args or {}), **changes)


def random_clips(clips, frames, size, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (clips, frames, 3, size, size), dtype=torch.uint8, generator=generator)
