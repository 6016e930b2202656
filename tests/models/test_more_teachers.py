"""Transformers of timm and the video networks of torchvision: files of theirs, imported, give the logits of theirs."""

import pytest
import safetensors.torch
import timm
import torch
from torchvision.models import video

from cache.errors import ReskdError
from stages.distill.config import LossConfig
from stages.distill.student import build_student
from stages.import_checkpoint.config import ImportConfig
from stages.import_checkpoint.import_checkpoint import import_checkpoint
from stages.metrics.averaging import averaged, view_scores
from stages.models.architectures import build_model
from stages.models.checkpoints import load_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.grad_checkpointing import enable_grad_checkpointing
from stages.models.head_norm import pooling_fault
from stages.models.init_weights import initialise
from stages.models.video_model import model_stats
from stages.models.zoo import ZOO
from stages.teacher.recalibrate import recalibrate
from tests.models.small_models import random_clips

NAMES = ("a", "b", "c", "d", "e")
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
TIMM = {  # heads: class token, attention pool, norm of the mean; registers; relative positions; a map of [N, h, w, D]
    "vit_tiny_patch16_224": VIT,
    "vit_base_patch16_siglip_224": VIT,
    "vit_medium_patch16_gap_240": VIT,
    "vit_small_patch14_reg4_dinov2": VIT,
    "eva02_tiny_patch14_224": VIT,
    "beit_base_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "img_size": 32},
}
FIXED = {"beit_base_patch16_224"}  # without positions for other sizes than theirs


def timm_file(name, folder):
    torch.manual_seed(0)
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in TIMM[name].items()}
    net = timm.create_model(name, num_classes=len(NAMES), **args).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, float(parameter.dim() == 1), 0.2)
    safetensors.torch.save_file(net.state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors", net


def imported(path, config, size):
    (path.parent / "names.txt").write_text("\n".join(NAMES))
    output = path.parent / "ours.safetensors"
    import_checkpoint(
        ImportConfig(source=path, output=output, model=config, size=size, classes=path.parent / "names.txt")
    )
    return load_model(output)


def differ(found, wanted) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_a_transformer_of_timm_keeps_its_own_head(name, tmp_path):
    path, net = timm_file(name, tmp_path)
    model, card = imported(path, ModelConfig(backbone=name, args=TIMM[name], num_frames=3), 32)
    assert card.model.pooling == "own" and not model.head.has_class_map
    clips = random_clips(2, 3, 32)
    frames = ((clips / 255 - model.mean) / model.std).flatten(0, 1)
    wanted, found = net(frames).unflatten(0, (2, 3)).mean(1), model(clips)
    assert wanted.std() > 0.01 and differ(found.logits, wanted) < 1e-5
    assert found.features.shape[:4] == (2, 3, 4, 4)
    tokens = net.forward_features(frames)  # its patches are the map
    patches = tokens.flatten(1, -2)[:, getattr(net, "num_prefix_tokens", 0) or 0 :]
    torch.testing.assert_close(found.features.flatten(0, 1).flatten(1, 2), patches, atol=1e-5, rtol=1e-5)
    if name in FIXED:
        with pytest.raises(ReskdError, match="can't take 3 frames of 48 px"):
            model_stats(model, 48)
    else:
        assert model_stats(model, 48).grid == (3, 6, 6)


def test_a_vit_trains_at_a_small_size_with_the_mean_of_its_map():
    config = ModelConfig(backbone="vit_tiny_patch16_224", args=VIT | {"img_size": 64}, num_classes=5, num_frames=2)
    torch.manual_seed(0)
    model = build_model(config)
    student, clips = build_student(model, LossConfig(logit_map_kl=1), 48), random_clips(2, 2, 32)
    torch.nn.init.normal_(model.head.fc.weight)
    answer = student.eval()(clips)
    assert answer.features.shape == (2, 2, 4, 4, 32)
    torch.testing.assert_close(answer.class_map.mean((1, 2, 3)), answer.logits, atol=1e-5, rtol=1e-5)
    answer.logits.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    first = model.backbone.patch_embed.proj.weight.grad.clone()
    model.zero_grad()
    enable_grad_checkpointing(model.train(), compiled=False)
    model.head.eval()
    model(clips).logits.square().sum().backward()
    torch.testing.assert_close(model.backbone.patch_embed.proj.weight.grad, first)


def test_a_training_is_told_to_take_the_own_pooling_and_class_maps_are_refused(tmp_path):
    path, _ = timm_file("vit_tiny_patch16_224", tmp_path)
    config = ModelConfig(backbone="vit_tiny_patch16_224", args=VIT, num_classes=5, num_frames=2)
    init = InitConfig(path=path)
    with pytest.raises(ReskdError, match="behind the pooling of vit_tiny_patch16_224: set model.pooling: own"):
        initialise(build_model(config), config, init, NAMES)
    own = config.model_copy(update={"pooling": "own"})
    model = build_model(own)
    assert "its classifier" in initialise(model, own, init, NAMES)
    with pytest.raises(ReskdError, match="needs a student whose classifier takes the map: set model.pooling: mean"):
        build_student(model, LossConfig(logit_map_kl=1), 32)
    clips = random_clips(4, 2, 32)
    with torch.no_grad():  # the mean feature's logits are the mean logits
        scores = [view_scores(model.eval(), clips, amp=False, average=kind) for kind in ("feature", "logit")]
    assert torch.equal(*scores) and torch.equal(*(averaged(model, scores[0], kind) for kind in ("feature", "logit")))


def test_a_head_that_says_something_else_is_found(tmp_path):
    path, _ = timm_file("vit_tiny_patch16_224", tmp_path)
    config = ModelConfig(backbone="vit_tiny_patch16_224", args=VIT, num_classes=5, num_frames=1, pooling="own")
    model = build_model(config)
    initialise(model, config, InitConfig(path=path), NAMES)
    weights, file = dict(model.state_dict()), safetensors.torch.load_file(path)
    assert pooling_fault(model, weights, config, file) is None
    weights["head.fc.bias"] = weights["head.fc.bias"] + 0.1
    assert "vit_tiny_patch16_224 is more than its pooling and a linear layer" in pooling_fault(
        model, weights, config, file
    )


def torchvision_file(name, folder):
    torch.manual_seed(0)
    net = getattr(video, name)(num_classes=len(NAMES)).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    torch.save(net.state_dict(), folder / "net.pth")
    return folder / "net.pth", net


@torch.no_grad()
@pytest.mark.parametrize(
    "name, frames, size, shape, stride, pooling",
    [
        ("r2plus1d_18", 9, 32, (2, 2, 2, 512), 2, "mean"),
        ("s3d", 13, 209, (2, 7, 7, 1024), 2, "own"),
        ("mvit_v2_s", 4, 64, (2, 2, 2, 768), 4, "own"),
    ],
)
def test_a_video_network_of_torchvision_keeps_its_logits(name, frames, size, shape, stride, pooling, tmp_path):
    path, net = torchvision_file(name, tmp_path)
    model, card = imported(path, ZOO[name].model_copy(update={"num_classes": None, "num_frames": frames}), size)
    assert (card.model.pooling, card.eval_policy.sampling, card.eval_policy.stride) == (pooling, "dense", stride)
    if name == "mvit_v2_s":  # torchvision's class is made for one size; its layers take others
        net.pos_encoding.temporal_size, net.pos_encoding.spatial_size = frames // 2, (size // 4, size // 4)
    clips = random_clips(1, frames, size)
    found, wanted = model(clips), net(((clips / 255 - model.mean) / model.std).transpose(1, 2))
    assert found.features.shape == (1, *shape) and differ(found.logits, wanted) < 1e-5


def test_the_video_networks_name_what_they_can_not_do(tmp_path):
    config = ModelConfig(arch="torchvision_video", backbone="r2plus1d_18", num_classes=5, num_frames=8)
    with torch.device("meta"):
        with pytest.raises(ReskdError, match="VideoResNet has no gradient checkpointing"):
            enable_grad_checkpointing(build_model(config), compiled=False)
        s3d = build_model(config.model_copy(update={"backbone": "s3d", "num_frames": 16, "pooling": "own"}))
    with pytest.raises(ReskdError, match="S3D.* can't take 16 frames of 112 px"):
        model_stats(s3d, 112)
    for changes, message in (
        ({"backbone": "mvit_v1_b"}, "'mvit_v1_b' is not one of torchvision's video networks here: choose r2plus1d_18"),
        ({"args": {"layers": [1]}}, "args.layers: r2plus1d_18 takes no arguments"),
        ({"drop_path": 0.1}, "r2plus1d_18 has no stochastic depth"),
    ):
        with pytest.raises(ReskdError, match=message):
            build_model(config.model_copy(update=changes))


def test_batch_norm_is_recalibrated_in_a_video_network():
    model = build_model(ModelConfig(arch="torchvision_video", backbone="mc3_18", num_classes=5, num_frames=4))
    before = model.backbone.stem[1].running_mean.clone()
    assert recalibrate(model, [random_clips(2, 4, 32)], torch.float32) == 1
    assert not torch.equal(model.backbone.stem[1].running_mean, before)


def test_pixels_and_sizes_that_no_file_names_are_told(tmp_path, capsys):
    path, _ = timm_file("vit_tiny_patch16_224", tmp_path)
    imported(path, ModelConfig(backbone="vit_tiny_patch16_224", args=VIT, num_frames=1), 32)
    assert "--set model.mean=[0.5,0.5,0.5] --set model.std=[0.5,0.5,0.5]" in capsys.readouterr().err
    (tmp_path / "ours.safetensors").unlink()
    path, _ = torchvision_file("mc3_18", tmp_path)
    imported(path, ZOO["r2plus1d_18"].model_copy(update={"backbone": "mc3_18", "num_classes": None}), 32)
    said = capsys.readouterr().err
    assert "torchvision's mc3_18 saw 112 px: import it with --size 112" in said and "model.mean" not in said
