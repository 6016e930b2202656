import timm
import torch
import torchvision
from pytest import approx, mark, raises
from torch import nn

from cache.errors import ReskdError
from stages.models.architectures import build_model
from stages.models.slowonly import inflate_weight
from tests.models.small_models import RESNET, config, lively, random_clips, small


class Taps(nn.Module):
    """A convolution over frames t-1, t, t+1 of clips of three frames, written as three convolutions of one frame each;
    there are zeros before the first frame and after the last."""

    def __init__(self, conv, weights):
        super().__init__()
        self.conv, self.weights = conv, weights

    def forward(self, x):
        clips = x.view(-1, 3, *x.shape[1:])
        padded = torch.cat([torch.zeros_like(clips[:, :1]), clips, torch.zeros_like(clips[:, :1])], 1)
        return sum(
            nn.functional.conv2d(padded[:, k : k + 3].flatten(0, 1), weight, None, self.conv.stride, self.conv.padding)
            for k, weight in enumerate(self.weights)
        )


def uneven(net):
    """BatchNorms with statistics that matter, in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def frame_by_frame(net, clips, mean, std):
    """[B, T, h, w, D] of a torchvision ResNet that sees single frames."""
    x = (clips.flatten(0, 1) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for name, module in net.named_children():
        if name not in ("avgpool", "fc"):
            x = module(x)
    return x.view(*clips.shape[:2], *x.shape[1:]).permute(0, 1, 3, 4, 2)


Bottleneck, BasicBlock = torchvision.models.resnet.Bottleneck, torchvision.models.resnet.BasicBlock


@mark.parametrize("alike", [True, False], ids=["inflated", "three-different-slices"])
@mark.parametrize("block, name", [(Bottleneck, "resnet26"), (BasicBlock, "resnet18")])
@torch.no_grad()
def test_a_model_equals_a_torchvision_resnet_inflated_by_hand(block, name, alike):
    torch.manual_seed(0)
    net = uneven(torchvision.models.ResNet(block, [2] * 4))
    state = {k: v[:, :, None] if v.dim() == 4 else v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    for stage in ("layer3", "layer4"):
        for i, at in enumerate(getattr(net, stage)):
            weight = at.conv1.weight.clone()
            slices = [weight / 3] * 3 if alike else [torch.randn_like(weight) * weight.std() for _ in range(3)]
            at.conv1 = Taps(at.conv1, slices)
            state[f"{stage}.{i}.conv1.weight"] = torch.stack(slices, 2)
    model = build_model(config("slowonly", name)).eval()
    model.backbone.load_state_dict(state, strict=True)
    clips = random_clips(2, 3, 48)
    expected = frame_by_frame(net, clips, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert expected.std() > 0.1
    torch.testing.assert_close(model(clips).features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_an_inflated_kernel_is_its_own_mean_in_time():
    weight = torch.randn(4, 3, 5, 5)
    inflated = inflate_weight(weight, 3)
    assert inflated.shape == (4, 3, 3, 5, 5)
    for k in range(3):
        assert torch.equal(inflated[:, :, k], weight / 3)
    assert torch.equal(inflate_weight(weight, 1), weight[:, :, None])


@mark.parametrize("name, temporal", [("resnet26", (3, 1, 1)), ("resnet18", (3, 3, 3))])
def test_keys_are_timms_and_kernels_see_time_in_conv1_of_the_last_two_stages(name, temporal):
    with torch.device("meta"):
        flat = timm.create_model(name, num_classes=0).state_dict()
        model = build_model(config("slowonly", name)).backbone
    state = model.state_dict()
    assert state.keys() == flat.keys()
    for key, value in flat.items():
        if value.dim() != 4:
            assert state[key].shape == value.shape
            continue
        stage, _, rest = key.partition(".")
        kernel = temporal if stage in ("layer3", "layer4") and rest.endswith("conv1.weight") else (1, *value.shape[2:])
        assert state[key].shape == (*value.shape[:2], *kernel), key
    strides = {m.stride[0] for m in model.modules() if isinstance(m, nn.Conv3d)}
    assert strides == {1} and model.maxpool.stride == (1, 2, 2) and model.maxpool.kernel_size == (1, 3, 3)


@mark.parametrize(
    "name, args",
    [
        ("resnet18", {**RESNET, "stem_type": "deep", "stem_width": 8}),  # the demo's
        ("resnet18", {**RESNET, "output_stride": 16, "replace_stem_pool": True}),
        ("resnet26d", {"channels": [16, 32, 32, 32]}),  # a deep stem, average pooling on the shortcut
        ("resnext50_32x4d", {"layers": [1, 1, 1, 1], "channels": [32, 32, 64, 64]}),
        ("resnet26t", {"channels": [16, 32, 32, 32], "act_layer": "silu"}),
    ],
)
@torch.no_grad()
def test_kernels_whose_middle_slice_alone_is_filled_give_the_2d_net(name, args):
    flat = uneven(build_model(config("tsn", name, args)))
    model = build_model(config("slowonly", name, args)).eval()
    state = flat.state_dict()
    for key, value in model.state_dict().items():
        if value.dim() == 5:
            depth = value.shape[2]
            state[key] = torch.stack([state[key] if k == depth // 2 else value[:, :, 0] * 0 for k in range(depth)], 2)
    model.load_state_dict(state, strict=True)
    clips = random_clips(2, 3, 40)
    expected = flat(clips).features
    assert expected.std() > 0.05
    torch.testing.assert_close(model(clips).features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_timms_weights_are_inflated_and_fresh_ones_differ_from_frame_to_frame(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **args):
        torch.manual_seed(7 if pretrained else 0)
        return create(name, **args)

    monkeypatch.setattr(timm, "create_model", offline)
    changes = {"backbone": "resnet18", "args": RESNET}
    state = build_model(config("slowonly", **changes), pretrained=True).backbone.state_dict()
    torch.manual_seed(7)
    flat = create(
        "resnet18", num_classes=0, global_pool="", channels=(16, 32, 64, 64), layers=(1,) * 4, output_stride=8
    )
    for key, value in flat.state_dict().items():
        torch.testing.assert_close(state[key].sum(2) if value.dim() == 4 else state[key], value)
    fresh = small("slowonly").backbone.layer4[0].conv1.weight
    assert (fresh[:, :, 0] - fresh[:, :, 1]).abs().mean() > 0.01
    assert fresh.std().item() == approx((2 / (fresh.shape[0] * 27)) ** 0.5, rel=0.05)  # He et al. 2015, fan out


@torch.no_grad()
def test_each_of_the_last_two_stages_sees_one_frame_to_each_side():
    model = lively("slowonly", num_frames=4).eval()
    clips = random_clips(1, 4, 16)
    other = clips.clone()
    other[:, 2] = 255 - other[:, 2]
    moved = (model(clips).features - model(other).features).abs().amax((0, 2, 3, 4))
    assert (moved[:4] > 1e-4).all()
    other = clips.clone()
    other[:, 3] = 255 - other[:, 3]
    moved = (model(clips).features - model(other).features).abs().amax((0, 2, 3, 4))
    assert moved[0] == 0 and (moved[1:] > 1e-4).all()


@mark.parametrize(
    "name, args, part",
    [
        ("resnetblur50", {}, "maxpool"),
        ("seresnet50", {}, r"layer1\.0\.se is a SEModule"),
        ("resnet50_gn", {}, "bn1 is a GroupNorm"),
        ("resnet26d", {"output_stride": 8}, r"layer\d\.0\.downsample\.0 is a AvgPool2dSame"),
        ("resnet18", {"drop_block_rate": 0.1}, r"layer3\.0\.drop_block is a DropBlock2d"),
    ],
)
def test_a_resnet_that_can_not_be_made_3d_is_refused(name, args, part):
    args = {"layers": [1, 1, 1, 1], "channels": [32, 32, 64, 128], **args}
    with raises(ReskdError, match=f"'{name}' can't be made 3D: its .*{part}.*choose a plain ResNet"):
        build_model(config("slowonly", name, args))
