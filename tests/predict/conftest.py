"""Videos that are dark first and bright then, and a net that tells dark from bright."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cache.view import ViewPolicy
from stages.bench.bad_videos.made_videos import encode_video
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, save_model
from stages.models.config import ModelConfig
from tests.predict.runs import shades

CLASSES = ("dark", "[b]right")


@pytest.fixture(scope="package")
def bright(tmp_path_factory) -> SimpleNamespace:
    """net: the checkpoint. film: 10 s dark, 6 s bright, 4.25 s dark. dark, light: 2 s each."""
    root = tmp_path_factory.mktemp("bright")
    args = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "output_stride": 8}
    model = ModelConfig(arch="tsm", backbone="resnet18", args=args, num_frames=4, num_classes=2)
    torch.manual_seed(0)
    net = build_model(model).eval()
    means = []
    with torch.no_grad():
        for value in (20, 220):
            means.append(net.extract(torch.full((1, 4, 3, 16, 16), value, dtype=torch.uint8)).mean((1, 2, 3))[0])
        apart = means[1] - means[0]
        net.head.fc.weight[1], net.head.fc.weight[0] = (6 * apart / apart.square().sum()), 0
        net.head.fc.bias[1] = -(net.head.fc.weight[1] @ (means[0] + means[1])) / 2
    still = ViewPolicy(num_frames=4, jitter=False, crop="center", flip=0.0)
    save_model(root / "net.safetensors", net, ModelCard(model, CLASSES, 16, None, still))
    made = {"film": shades(10, 6, 4.25), "dark": shades(2), "light": shades(2, first=1)}
    for name, frames in made.items():
        (root / f"{name}.mp4").write_bytes(encode_video(frames, fps=4))
    return SimpleNamespace(root=root, net=root / "net.safetensors", **{n: Path(root / f"{n}.mp4") for n in made})
