"""Networks of timm that do something between their pooling and their classifier: their logits are kept, or refused."""

import pytest
import safetensors.torch
import timm
import torch

from cache.errors import ReskdError
from cache.identity import Identity
from cache.manifest import FORMAT, Manifest
from cache.view import ViewPolicy
from stages.distill.check_targets import check_targets
from stages.distill.config import LossConfig
from stages.distill.student import build_student
from stages.distill.targets import TargetDecoder
from stages.import_checkpoint.config import ImportConfig
from stages.import_checkpoint.import_checkpoint import import_checkpoint
from stages.models.architectures import build_model
from stages.models.checkpoints import load_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.init_weights import initialise
from stages.models.video_model import ModelOutput
from tests.foreign_files import clips, lively

NAMES = ("a", "b", "c", "d", "e")
TINY = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}  # of a ConvNeXt
THIN = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 64, 96], "num_heads": [1, 2, 2, 3]}
NORMED = {  # networks with a norm in their head -> sizes that make them quick; the heads are those of the whole networks
    "convnext_atto": TINY,
    "convnextv2_atto": TINY,
    "edgenext_xx_small": {"depths": [1, 1, 1, 1]},
    "poolformer_s12": {},
    "davit_tiny": THIN,
    "tiny_vit_5m_224": THIN,
}
PLAIN = {"resnet10t": {}, "regnetx_002": {}, "mobilenetv2_050": {}, "convnext_atto": TINY | {"head_norm_first": True}}


def file_of(name, folder, **args):
    """A file of timm's network with five classes, and the network. Its norms have weights that matter."""
    torch.manual_seed(0)
    net = lively(timm.create_model(name, num_classes=len(NAMES), **args))
    for parameter in net.get_classifier().parameters():
        torch.nn.init.normal_(parameter)
    safetensors.torch.save_file(net.state_dict(), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors", net


def imported(path, name, folder, frames=1, **changes):
    (folder / "names.txt").write_text("\n".join(NAMES))
    model = ModelConfig(backbone=name, num_frames=frames, **changes)
    output = folder / "ours.safetensors"
    import_checkpoint(ImportConfig(source=path, output=output, model=model, classes=folder / "names.txt", size=64))
    return load_model(output)


@torch.no_grad()
def frame_logits(net, views, model):
    """What the whole network of timm says of each frame, [B, T, K]."""
    frames = ((views / 255 - model.mean) / model.std).flatten(0, 1)
    return net(frames).unflatten(0, views.shape[:2])


def differ(found, wanted) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize(
    "name, args, normed",
    [(*net, True) for net in NORMED.items()] + [(*net, False) for net in PLAIN.items()],
)
def test_an_imported_net_of_timm_gives_the_logits_of_the_whole_net(name, args, normed, tmp_path):
    path, net = file_of(name, tmp_path, **args)
    model, card = imported(path, name, tmp_path, args=args)
    assert card.model.head_norm is normed
    views = clips(frames=1, size=64)
    with torch.no_grad():
        found = model(views).logits
    wanted = frame_logits(net, views, model)[:, 0]
    assert wanted.std() > 1e-2 and differ(found, wanted) < 1e-5
    if model.head.norm is not None:  # a head without the norm says something else
        with torch.no_grad():
            assert differ(model.head.fc(model.extract(views).mean((1, 2, 3))), wanted) > 1e-3


def test_the_scores_of_a_clip_are_the_mean_of_its_frames(tmp_path):
    path, net = file_of("convnext_atto", tmp_path, **TINY)
    model, _ = imported(path, "convnext_atto", tmp_path, frames=4, args=TINY)
    views = clips(frames=4, size=64)
    with torch.no_grad():
        assert differ(model(views).logits, frame_logits(net, views, model).mean(1)) < 1e-5


REFUSED = {  # a norm of another kind; a hidden layer; a layer before the pooling; a BatchNorm
    "convnext_atto_rms": (TINY, "can't be kept, since convnext_atto_rms does more than a mean before it.*head: reinit"),
    "convnext_atto": (TINY | {"head_hidden_size": 24}, "doesn't fit a tsn of convnext_atto"),
    "mobilenetv3_small_050": ({}, "a classifier of another shape.*taken for mobilenetv3_small_050"),
    "repvit_m0_9": ({}, "(?s)doesn't fit a tsn of repvit_m0_9.*unexpected backbone.head.head.bn.bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_classifier_that_can_not_be_kept_is_refused_by_the_nets_name(name, tmp_path):
    args, message = REFUSED[name]
    path, _ = file_of(name, tmp_path, **args)
    with pytest.raises(ReskdError, match=message):
        imported(path, name, tmp_path, args=args)


def start(path, config, classes=NAMES, **init):
    model = build_model(config)
    return model, initialise(model, config, InitConfig(path=path, **init), classes)


def test_a_training_is_told_to_take_the_norm(tmp_path):
    path, net = file_of("convnext_atto", tmp_path, **TINY)
    config = ModelConfig(backbone="convnext_atto", args=TINY, num_classes=5, num_frames=1)
    with pytest.raises(ReskdError, match=r"behind a norm of convnext_atto: set model.head_norm: true.*head: drop"):
        start(path, config)
    for head in ("reinit", "drop"):  # as before: a fresh classifier of the mean of the map
        model, said = start(path, config, head=head)
        assert "a fresh classifier" in said and model.head.norm is None
    model, said = start(path, config.model_copy(update={"head_norm": True}))
    assert "its classifier" in said
    assert torch.equal(model.head.norm.weight, net.head.norm.weight) and model.head.norm.eps == net.head.norm.eps
    assert all(p.requires_grad for p in model.head.norm.parameters())
    with pytest.raises(ReskdError, match="'resnet50' has no norm between its pooling and its classifier"):
        build_model(ModelConfig(backbone="resnet50", num_classes=5, head_norm=True))


def test_our_own_file_with_a_norm_says_so(tmp_path):
    path, _ = file_of("convnext_atto", tmp_path, **TINY)
    imported(path, "convnext_atto", tmp_path, args=TINY)
    config = ModelConfig(backbone="convnext_atto", args=TINY, num_classes=5, num_frames=1)
    with pytest.raises(ReskdError, match="has model.head_norm true: set model.head_norm: true"):
        start(tmp_path / "ours.safetensors", config)
    assert "its classifier" in start(tmp_path / "ours.safetensors", config.model_copy(update={"head_norm": True}))[1]


def test_the_mean_of_a_class_map_is_the_logits_and_its_gradient_reaches_the_norm():
    config = ModelConfig(backbone="convnext_atto", args=TINY, num_classes=5, num_frames=3, head_norm=True)
    torch.manual_seed(0)
    student = build_student(lively(build_model(config)), LossConfig(logit_map_kl=1), 24).eval()
    torch.nn.init.normal_(student.model.head.fc.weight)
    answer = student(clips(frames=3, size=64))
    assert answer.class_map.shape == (2, 3, 2, 2, 5)
    torch.testing.assert_close(answer.class_map.mean((1, 2, 3)), answer.logits, atol=1e-5, rtol=1e-5)
    answer.class_map.square().mean().backward()
    for parameter in (student.model.head.norm.weight, student.model.head.norm.bias, student.model.head.fc.weight):
        assert parameter.grad.abs().max() > 0


def test_class_maps_of_a_teacher_with_a_norm_are_refused():
    """A linear classifier of its map doesn't give its logits."""
    teacher = {"model": {"head_norm": True}}
    maps = {"codec": "float16", "grid": [2, 4, 4], "width": 16, "map": [2, 4, 4, 16]}
    targets = {"logits": {"codec": "uint8", "width": 5}, "features": maps}
    manifest = Manifest(Identity(FORMAT, teacher, "pyav", ViewPolicy(num_frames=2), (), (), targets), views=1)
    shapes = ModelOutput(torch.empty(1, 5), torch.empty(1, 2, 4, 4, 16))
    check_targets(manifest, LossConfig(feature_mse=1, logit_kl=1), shapes, 2)
    with pytest.raises(ReskdError, match="teacher has a norm before its classifier"):
        check_targets(manifest, LossConfig(logit_map_kl=1), shapes, 2)
    with pytest.raises(ReskdError, match="teacher has a norm before its classifier"):
        TargetDecoder().decode(None, LossConfig(logit_map_kl=1))
