"""Nets of other programs give here what they give there."""

import re

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torchvision.models.swin_transformer import SwinTransformer

from cache.errors import ReskdError
from stages.models.architectures import build_model
from stages.models.config import InitConfig, ModelConfig
from stages.models.init_weights import initialise
from stages.models.weight_names import recognise_format, to_our_names
from tests.foreign_files import (
    SWIN,
    as_mmaction2,
    as_pytorchvideo,
    as_rkd,
    clips,
    inflated,
    lively,
    model_config,
    output,
    resnet,
    shifted,
    swin,
)


def save(path, content):
    safetensors.torch.save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def loaded(path, config, **init):
    """A fresh model with the checkpoint's weights, and what is said of it."""
    torch.manual_seed(11)
    model = build_model(config).eval()
    return model, initialise(model, config, InitConfig(path=path, **init), None)


def same(model, expected, views):
    with torch.no_grad():
        found = model(views)
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def nets(arch, **kwargs):
    if arch == "swin":
        return swin(**kwargs)
    net = resnet(**kwargs)
    return {"tsn": net, "tsm": shifted(net), "slowonly": inflated(net, own_weights=True)}[arch]


def plain(net):
    """The state dict of a net as torchvision names it, the shift's wrapper taken off."""
    return {name.replace("conv1.1.", "conv1."): tensor for name, tensor in net.state_dict().items()}


def layouts():
    for arch in ("tsn", "tsm", "slowonly", "swin"):
        for wrapped in {"tsn": ("bare", "0.x"), "tsm": ("0.x", "1.x")}.get(arch, ("1.x",)):
            yield pytest.param(arch, "mmaction2", wrapped, "net.pth", id=f"mmaction2-{arch}-{wrapped}")
    for arch in ("tsn", "slowonly", "swin"):
        yield pytest.param(arch, "torchvision", "bare", "net.pt", id=f"torchvision-{arch}")
    yield pytest.param("tsn", "torchvision", "ddp", "net.bin", id="torchvision-ddp")
    yield pytest.param("tsn", "torchvision", "bare", "net.safetensors", id="safetensors")


@pytest.mark.parametrize("arch, layout, wrapped, name", list(layouts()))
def test_a_checkpoint_gives_what_its_net_gives(arch, layout, wrapped, name, tmp_path):
    net = nets(arch)
    state = plain(net)
    if layout == "mmaction2":
        bare = net if arch != "tsm" else resnet()
        state = as_mmaction2(bare, shift=arch == "tsm", new=wrapped == "1.x")
    content = {
        "bare": state,
        "0.x": {"meta": {"epoch": 3}, "state_dict": state, "optimizer": {"state": {0: torch.zeros(3)}}},
        "1.x": {
            "meta": {},
            "state_dict": {
                **{f"module.{name}": tensor for name, tensor in state.items()},
                "module.data_preprocessor.mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
                "module.data_preprocessor.std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
            },
            "ema_state_dict": {name: tensor * 2 for name, tensor in state.items()},
            "message_hub": {},
            "param_schedulers": [],
        },
        "ddp": {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    }[wrapped]
    model, said = loaded(save(tmp_path / name, content), model_config(arch))
    same(model, output(net, arch, clips()), clips())
    assert layout in said and "its classifier" in said and "inflated" not in said


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_both_nets_of_the_seeds_swin_container(part, tmp_path):
    student, teacher = swin(seed=1), swin(seed=2)
    path = save(tmp_path / "rkd.pth", {"state_dict": as_rkd(as_mmaction2(student), as_mmaction2(teacher), True)})
    model, said = loaded(path, model_config("swin"), part=part)
    same(model, output({"student": student, "teacher": teacher}[part], "swin", clips()), clips())
    assert f"rkd ({part})" in said


@pytest.mark.parametrize("arch", ["tsn", "tsm", "slowonly"])
def test_both_nets_of_the_seeds_cnn_container_whose_teacher_has_no_classifier(arch, tmp_path):
    student, teacher = nets(arch, seed=1), nets(arch, seed=2)
    state = [resnet(seed=s) if arch == "tsm" else net for s, net in ((1, student), (2, teacher))]
    student_state, teacher_state = (as_mmaction2(net, shift=arch == "tsm") for net in state)
    path = save(tmp_path / "rkd.pth", {"state_dict": as_rkd(student_state, teacher_state, False)})
    model, _ = loaded(path, model_config(arch))
    same(model, output(student, arch, clips()), clips())
    with pytest.raises(ReskdError, match=r"\(its teacher\) has no classifier.*5 classes.*head: reinit.*head: drop"):
        loaded(path, model_config(arch), part="teacher")
    for head in ("reinit", "drop"):
        model, said = loaded(path, model_config(arch), part="teacher", head=head)
        features = output(teacher, arch, clips())[1]
        same(model, (model(clips()).logits.detach(), features), clips())
        assert "a fresh classifier" in said


@pytest.mark.parametrize("layout", ["torchvision", "mmaction2"])
def test_a_2d_resnet_is_inflated_for_slowonly(layout, tmp_path):
    net = resnet()
    path = save(tmp_path / "net.pth", net.state_dict() if layout == "torchvision" else as_mmaction2(net))
    model, said = loaded(path, model_config("slowonly"))
    same(model, output(inflated(net, own_weights=False), "slowonly", clips()), clips())
    assert "2D weights inflated" in said


def flat_swin():
    torch.manual_seed(0)
    sizes = {"patch_size": [4, 4], "window_size": [2, 2], "num_classes": 5}
    return lively(SwinTransformer(**{**{k: SWIN[k] for k in ("embed_dim", "depths", "num_heads")}, **sizes}))


def as_microsoft(net, new_timm):
    """A 2D Swin of torchvision in the names of its authors, or of a new timm."""
    state = {}
    for name, tensor in net.state_dict().items():
        first, *rest = name.split(".")
        if first == "features" and rest[0] == "0":
            name = ".".join(["patch_embed", {"0": "proj", "2": "norm"}[rest[1]], *rest[2:]])
        elif first == "features" and int(rest[0]) % 2 == 0:
            stage = int(rest[0]) // 2 if new_timm else int(rest[0]) // 2 - 1
            name = ".".join(["layers", str(stage), "downsample", *rest[1:]])
        elif first == "features":
            name = ".".join(["layers", str(int(rest[0]) // 2), "blocks", *rest[1:]])
            name = name.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
            if name.endswith("relative_position_index"):
                if new_timm:
                    continue  # not saved
                tensor = tensor.view(4, 4)
                if ".1.attn" in name:
                    state[name.replace("attn.relative_position_index", "attn_mask")] = torch.tensor([[0.0, -100.0]])
        elif first == "head" and new_timm:
            name = "head.fc." + rest[0]
        state[name] = tensor
    return state


@pytest.mark.parametrize("layout", ["torchvision", "timm", "microsoft"])
@torch.no_grad()
def test_a_2d_swin_gives_a_still_clip_what_it_gives_the_picture(layout, tmp_path):
    net = flat_swin()
    state = net.state_dict() if layout == "torchvision" else as_microsoft(net, layout == "timm")
    path = save(tmp_path / "net.pth", {"model": state} if layout == "microsoft" else state)
    model, said = loaded(path, model_config("swin"), format="torchvision" if layout == "torchvision" else "timm")
    still = clips()[:, :1].expand(-1, 4, -1, -1, -1)
    normalised = (still[:, 0] / 255 - model.mean) / model.std
    features = net.norm(net.features(normalised))
    same(model, (net.head(features.mean((1, 2))), features[:, None].expand(-1, 2, -1, -1, -1)), still)
    assert "2D weights inflated" in said


@torch.no_grad()
def test_the_names_of_timms_own_swin_are_known(tmp_path):
    """`as_microsoft` above is ours; this is the net itself, whose names the installed timm gives."""
    sizes = {"embed_dim": 16, "depths": (2, 1, 2), "num_heads": (1, 2, 2), "window_size": 2, "img_size": 32}
    torch.manual_seed(0)
    net = lively(TimmSwin(patch_size=4, num_classes=5, **sizes))
    model, _ = loaded(save(tmp_path / "net.safetensors", net.state_dict()), model_config("swin"))
    still = clips()[:, :1].expand(-1, 4, -1, -1, -1)
    features = net.forward_features((still[:, 0] / 255 - model.mean) / model.std)
    same(model, (net.forward_head(features), features[:, None].expand(-1, 2, -1, -1, -1)), still)


@pytest.mark.parametrize("name", ["resnet26d", "tf_efficientnet_lite0"])
def test_a_net_of_timm_keeps_its_own_names(name, tmp_path):
    torch.manual_seed(0)
    net = lively(timm.create_model(name, num_classes=5))
    path = save(tmp_path / "net.safetensors", net.state_dict())
    model, _ = loaded(path, ModelConfig(backbone=name, num_classes=5, num_frames=1), format="timm")
    views = clips(frames=1, size=64)
    with torch.no_grad():
        maps = net.forward_features((views[:, 0] / 255 - model.mean) / model.std)
        logits = net.forward_head(maps)
    same(model, (logits, maps.permute(0, 2, 3, 1)[:, None]), views)


@pytest.mark.parametrize(
    "config, net, count",
    [
        (ModelConfig(backbone="resnet50", num_classes=400), torchvision.models.resnet50, 320),
        (ModelConfig(backbone="resnet152", num_classes=400), torchvision.models.resnet152, 932),
        (ModelConfig(arch="tsm", backbone="resnet50", num_classes=400), torchvision.models.resnet50, 320),
        (ModelConfig(arch="swin", backbone="swin3d_s", num_classes=400), torchvision.models.video.swin3d_s, 353),
        (ModelConfig(arch="swin", backbone="swin3d_b", num_classes=400), torchvision.models.video.swin3d_b, 353),
    ],
    ids=["r50", "r152", "tsm", "swin-s", "swin-b"],
)
def test_full_nets_have_as_many_tensors_as_the_published_files_and_the_same_shapes(config, net, count):
    with torch.device("meta"):
        theirs = as_mmaction2(net(num_classes=400), shift=config.arch == "tsm")
        model = build_model(config)
    assert len(theirs) == count and recognise_format(theirs) == ("mmaction2",)
    ours = to_our_names(theirs, "mmaction2", "student", config, model.backbone)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


def without(state, *names):
    assert set(names) <= state.keys()
    return {name: tensor for name, tensor in state.items() if name not in names}


def tracked(state):
    return [name for name in state if name.endswith("num_batches_tracked")]


def test_counts_of_batches_may_be_absent_from_a_whole_file_as_in_old_ones_but_not_from_a_part(tmp_path):
    net = resnet()
    state = net.state_dict()
    model, _ = loaded(save(tmp_path / "old.pth", without(state, *tracked(state))), model_config("tsn"))
    same(model, output(net, "tsn", clips()), clips())
    path = save(tmp_path / "mixed.pth", without(state, *tracked(state)[:1]))
    with pytest.raises(ReskdError, match=r"missing backbone.bn1.num_batches_tracked$"):
        loaded(path, model_config("tsn"))


def test_indices_of_positions_may_be_absent_but_not_another_windows(tmp_path):
    net = swin()
    state = as_mmaction2(net)
    indices = [name for name in state if name.endswith("relative_position_index")]
    model, _ = loaded(save(tmp_path / "net.pth", without(state, *indices)), model_config("swin"))
    same(model, output(net, "swin", clips()), clips())
    state[indices[0]] = state[indices[0]].flip(0)
    with pytest.raises(ReskdError, match=r"relative_position_index .* not the index of a window of \[2, 2, 2\]"):
        loaded(save(tmp_path / "other.pth", state), model_config("swin"))


def test_a_mask_is_left_out_for_what_it_holds_not_for_its_name(tmp_path):
    state = as_mmaction2(swin()) | {"backbone.layers.0.blocks.1.attn_mask": torch.rand(2, 3)}
    with pytest.raises(ReskdError, match=r"unexpected backbone.features.0.1.attn_mask"):
        loaded(save(tmp_path / "net.pth", state), model_config("swin"))


def bad_swin():
    return SwinTransformer(patch_size=[4, 4], embed_dim=16, depths=[2, 1, 2], num_heads=[1, 2, 2], window_size=[3, 3])


@pytest.mark.parametrize(
    "arch, state, message",
    [
        ("tsn", lambda: torchvision.models.resnet18().state_dict(), r"(?s)doesn't fit.*missing .*and \d+ more$"),
        ("tsn", lambda: as_mmaction2(inflated(resnet(), True)),
         r"conv1.weight: the checkpoint has shape \[64, 3, 1, 7, 7\], the model \[64, 3, 7"),
        ("tsn", lambda: without(as_mmaction2(resnet()), "backbone.conv1.bn.weight"), "missing backbone.bn1.weight$"),
        ("tsn", lambda: as_mmaction2(resnet()) | {"neck.x": torch.zeros(1)}, "unexpected neck.x$"),
        ("tsn", lambda: as_mmaction2(resnet()) | {"backbone.layer1.0.conv1.weight": torch.zeros(1)}, "two namings"),
        ("tsn", lambda: {k: v.int() for k, v in resnet().state_dict().items()},
         "the checkpoint has torch.int32, the model torch.float32"),
        ("tsn", lambda: as_mmaction2(resnet(), shift=True), "is a TSM.*set model.arch to tsm, not tsn"),
        ("tsn", lambda: swin().state_dict(), r"(?s)missing .*and \d+ more$"),
        ("swin", lambda: resnet().state_dict(), r"(?s)missing .*and \d+ more$"),
        ("swin", lambda: bad_swin().state_dict(), r"is not the index of a window of \[2, 2, 2\]"),
        ("tsn", lambda: as_mmaction2(resnet()) | {"data_preprocessor.mean": torch.full((3,), 127.5)}, "mean .0.5, 0.5, 0.5"),
    ],
    ids=["depth", "3d", "missing", "extra", "namings", "kind", "tsm", "swin", "resnet", "window", "mean"],
)  # fmt: skip
def test_a_net_that_does_not_fit_is_refused_with_what_does_not(arch, state, message, tmp_path):
    path = save(tmp_path / "net.pth", dict(state()))
    with pytest.raises(ReskdError, match=message) as caught:
        loaded(path, model_config(arch))
    assert len(str(caught.value).splitlines()) <= 14


def test_a_prefix_is_seen_as_what_is_missing_stands_beside_what_is_there_instead(tmp_path):
    state = {f"student.{name}": tensor for name, tensor in resnet().state_dict().items()}
    with pytest.raises(
        ReskdError, match=r"(?s)missing backbone.bn1.bias.*unexpected backbone.student.bn1.bias.*and \d+ more$"
    ):
        loaded(save(tmp_path / "lightning.pth", state), model_config("tsn"))


@pytest.mark.parametrize(
    "name, ours, value",
    [
        ("layer1.0.bn1.running_var", "backbone.layer1.0.bn1.running_var", float("nan")),
        ("conv1.weight", "backbone.conv1.weight", float("inf")),
        ("conv1.weight", "backbone.conv1.weight", -1e300),
        ("fc.weight", "head.fc.weight", -1e300),
        ("fc.bias", "head.fc.bias", float("nan")),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(name, ours, value, tmp_path):
    """A float64 of a file may be finite, and not be so as float32."""
    state = {
        key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in resnet().state_dict().items()
    }
    state[name].view(-1)[1] = value
    path = save(tmp_path / "net.pth", state)
    with pytest.raises(ReskdError, match=rf"{ours} holds numbers that are not finite$"):
        loaded(path, model_config("tsn"))
    if name.startswith("fc"):
        loaded(path, model_config("tsn"), head="drop")  # it isn't taken


def test_the_message_names_the_net_that_a_file_was_taken_for_and_the_weights_in_it(tmp_path):
    """timm's resnet50, resnetaa50 and resnetblur50 have the same names, and other pooling."""
    state = timm.create_model("resnetblur50", num_classes=5, **{"layers": [1, 1, 1, 1]}).state_dict()
    config = ModelConfig(backbone="resnet50", args={"layers": [1, 1, 1, 1]}, num_classes=5, num_frames=1)
    path = save(tmp_path / "net.pth", {"model": state, "model_ema": state})
    _, said = loaded(path, config)
    assert (
        "net.pth, taken for resnet50: " in said
        and "of the file the weights under model, not those under model_ema" in said
    )


@pytest.mark.parametrize("given, found", [("mmaction2", "torchvision or timm"), ("rkd", "torchvision or timm")])
def test_a_format_that_the_keys_deny_is_refused(given, found, tmp_path):
    path = save(tmp_path / "net.pth", resnet().state_dict())
    with pytest.raises(ReskdError, match=f"not of the format {given}: by its keys it is of {found}"):
        loaded(path, model_config("tsn"), format=given)
    with pytest.raises(ReskdError, match="part: teacher chooses from an rkd container"):
        loaded(path, model_config("tsn"), part="teacher")


# ---- MIT's TSN and TSM, pytorchvideo's ResNet ----


def as_mit(net, shift=False, place="conv1"):
    """The names in a file of MIT's program, whose `DataParallel` adds `module.`."""
    state = {}
    for name, tensor in net.state_dict().items():
        if shift and re.match(r"layer\d\.\d+\.conv1\.", name):
            name = name.replace("conv1.", "conv1.net.") if place == "conv1" else name.replace("conv1.", "net.conv1.")
        name = name.replace("fc.", "new_fc.") if name.startswith("fc.") else f"base_model.{name}"
        state[f"module.{name}"] = tensor
    return {"epoch": 50, "arch": "resnet50", "state_dict": state, "best_prec1": 70.1}


@pytest.mark.parametrize("arch", ["tsn", "tsm"])
def test_a_file_of_mits_program_gives_what_its_net_gives(arch, tmp_path):
    net = resnet()
    path = save(tmp_path / "ckpt.best.pth.tar", as_mit(net, shift=arch == "tsm"))
    model, said = loaded(path, model_config(arch))
    same(model, output(nets(arch), arch, clips()), clips())
    assert ": mit, " in said and "its classifier" in said and "without the temporal shift" not in said


def test_a_file_of_pytorchvideo_gives_what_its_net_gives(tmp_path):
    net = nets("slowonly")
    model, said = loaded(save(tmp_path / "SLOW_8x8_R50.pyth", as_pytorchvideo(net)), model_config("slowonly"))
    same(model, output(net, "slowonly", clips()), clips())
    assert ": pytorchvideo, " in said and "inflated" not in said


def without_one_shift(content):
    """One block of the file doesn't shift."""
    name = "module.base_model.layer2.1.conv1.net.weight"
    state = dict(content["state_dict"])
    return {"state_dict": state | {name.replace(".net", ""): state.pop(name)}}


def with_more(content, key, **tensors):
    return {key: content[key] | tensors}


@pytest.mark.parametrize(
    "arch, content, message",
    [
        ("tsm", lambda: as_mit(resnet(), shift=True, place="block"), r"(?s)missing.*unexpected backbone.layer1.0.net.conv1"),
        ("tsm", lambda: without_one_shift(as_mit(resnet(), shift=True)), r"shifts the blocks layer1.0, layer2.0, layer3.0, "
         "layer4.0, and a TSM of resnet50 shifts layer1.0, layer2.0, layer2.1, layer3.0, layer4.0"),
        ("tsn", lambda: as_mit(resnet(), shift=True), "is a TSM.*set model.arch to tsm, not tsn"),
        ("tsn", lambda: with_more(as_mit(resnet()), "state_dict", **{"module.base_model.nl.g.weight": torch.zeros(3)}),
         "unexpected backbone.nl.g.weight$"),
        ("tsn", lambda: with_more(as_mit(resnet()), "state_dict", **{"module.base_model.fc.bias": torch.zeros(5)}),
         "two tensors of the checkpoint become fc.bias"),
        ("slowonly", lambda: with_more(as_pytorchvideo(nets("slowonly")), "model_state",
                                       **{"blocks.1.res_blocks.0.branch2.se.weight": torch.zeros(3)}),
         "unexpected backbone.blocks.1.res_blocks.0.branch2.se.weight$"),
        ("tsn", lambda: as_pytorchvideo(nets("slowonly")), r"conv1.weight: the checkpoint has shape \[64, 3, 1, 7, 7\]"),
    ],
    ids=["blocks", "one block", "tsm", "non-local", "two classifiers", "se", "3d"],
)  # fmt: skip
def test_a_file_of_theirs_that_does_not_fit_whole_is_refused(arch, content, message, tmp_path):
    with pytest.raises(ReskdError, match=message):
        loaded(save(tmp_path / "net.pth", content()), model_config(arch))
