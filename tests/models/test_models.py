import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from cache.errors import ReskdError
from stages.models.architectures import build_model
from stages.models.grad_checkpointing import enable_grad_checkpointing
from stages.models.tsm import temporal_shift
from stages.models.video_model import model_stats, to_device
from tests.models.small_models import ARCHS, config, lively, random_clips, small


class Shift(nn.Module):
    """Upstream's shift written from its description, frame by frame, for clips of three frames."""

    def forward(self, x):
        fold = x.shape[1] // 8
        moved = x.clone()
        for i in range(len(x)):
            first, last = i % 3 == 0, i % 3 == 2
            moved[i, :fold] = 0 if last else x[i + 1, :fold]
            moved[i, fold : 2 * fold] = 0 if first else x[i - 1, fold : 2 * fold]
        return moved


def reference(net, arch, every):
    """A torchvision ResNet with statistics that matter, shifted in blocks 0, every, 2 * every, ... of each stage."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = copy.deepcopy(net.state_dict())
    if arch == "tsm":
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in list(stage)[::every]:
                block.conv1 = nn.Sequential(Shift(), block.conv1)
    return net.eval(), state


def reference_output(net, clips, mean, std):
    pixels = clips.flatten(0, 1).to(net.fc.weight.dtype)
    x = (pixels / 255 - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
    for name, module in net.named_children():
        if name not in ("avgpool", "fc"):
            x = module(x)
    pooled = x.mean((2, 3)).view(*clips.shape[:2], -1).mean(1)
    return net.fc(pooled), x.view(*clips.shape[:2], *x.shape[1:]).permute(0, 1, 3, 4, 2)


ResNet, Bottleneck = torchvision.models.ResNet, torchvision.models.resnet.Bottleneck


@pytest.mark.parametrize(
    "arch, layers, base_width, every",
    [
        pytest.param("tsn", [3, 4, 6, 3], 64, 1, id="tsn-resnet50"),
        pytest.param("tsm", [3, 4, 6, 3], 16, 1, id="tsm-narrow-resnet50"),
        pytest.param("tsm", [2, 2, 23, 2], 16, 2, id="tsm-deep"),  # 23 blocks in layer3, as a ResNet-101 has
    ],
)
@torch.no_grad()
def test_a_model_equals_torchvision_with_the_same_weights(arch, layers, base_width, every):
    torch.manual_seed(0)
    net, state = reference(ResNet(Bottleneck, layers, num_classes=5, width_per_group=base_width), arch, every)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
    args = {} if base_width == 64 else {"layers": layers, "base_width": base_width}
    model = build_model(config(arch, "resnet50", args, mean=mean, std=std)).eval()
    fc = {key.removeprefix("fc."): state.pop(key) for key in list(state) if key.startswith("fc.")}
    model.backbone.load_state_dict(state, strict=True)
    model.head.fc.load_state_dict(fc)
    clips = random_clips(1, 3, 64)
    logits, features = reference_output(net, clips, mean, std)
    output = model(clips)
    assert features.std() > 0.1 and logits.std() > 0.01
    for mine, theirs in ((output.features, features), (output.logits, logits)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_the_shift_moves_an_eighth_each_way_and_pads_with_zeros_at_the_ends():
    frames = torch.arange(1.0, 9).view(8, 1, 1, 1).expand(8, 16, 2, 2)  # two clips of four frames, value = frame number
    shifted = temporal_shift(frames, num_frames=4, shift_div=8)[:, :, 0, 0]
    assert shifted[:, 0].tolist() == shifted[:, 1].tolist() == [2, 3, 4, 0, 6, 7, 8, 0]
    assert shifted[:, 2].tolist() == shifted[:, 3].tolist() == [0, 1, 2, 3, 0, 5, 6, 7]
    assert torch.equal(shifted[:, 4:], frames[:, 4:, 0, 0])


def test_the_shift_keeps_channels_last_memory():
    frames = torch.randn(6, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    assert temporal_shift(frames, 3, 8).is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_only_tsn_does_not_know_the_order_of_frames():
    clips = random_clips(2, 4, 24)
    for arch in ARCHS:
        model = lively(arch, num_frames=4).eval()
        features = model(clips).features, model(clips.flip(1)).features.flip(1)
        assert torch.allclose(*features, atol=1e-5) is (arch == "tsn"), arch


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(arch):
    model = lively(arch).eval()
    one, two = random_clips(1, 3, 24, seed=1), random_clips(1, 3, 24, seed=2)
    together = model(torch.cat([one, two])).features
    torch.testing.assert_close(together, torch.cat([model(one).features, model(two).features]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size, side", [(16, 2), (24, 3), (32, 4)])
def test_small_nets_and_what_they_say_of_themselves(arch, size, side):
    model = small(arch)
    logits, features = model(random_clips(2, 3, size))
    frames = 2 if arch == "swin" else 3
    assert logits.shape == (2, 5) and logits.dtype == torch.float32
    assert features.shape == (2, frames, side, side, 64)
    stats = model_stats(model, size)
    assert (stats.grid, stats.width) == ((frames, side, side), 64)
    assert stats.parameters == sum(p.numel() for p in model.parameters())
    assert model.training and next(model.parameters()).device.type == "cpu"


def test_the_count_is_that_of_a_forward_by_hand():
    """A 7x7 stem of stride 2 alone is 32*32/4 positions x 64 x 3 x 49 multiply-adds a frame; the rest adds to it."""
    model = small("tsn", num_classes=7)
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        per_value = module.weight[0].numel()  # of one output number
        counted += output.numel() * per_value

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(random_clips(1, 3, 32))
    assert counted > 3 * 256 * 64 * 147
    for module in model.modules():
        module._forward_hooks.clear()
    assert model_stats(model, 32).gmacs * 1e9 == pytest.approx(counted, abs=1)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_reach_all_parameters(arch):
    model = lively(arch, dropout=0.0)
    logits, features = model(random_clips(2, 3, 24))
    (logits.square().sum() + features.pow(3).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_are_float32_under_autocast_and_near_the_exact_ones(arch):
    model = small(arch).eval()
    nn.init.normal_(model.head.fc.weight)
    clips = random_clips(2, 3, 24)
    exact = model(clips)
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = model(clips)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(features.float(), exact.features, rtol=0.05, atol=0.05)
    # The head itself adds no rounding: its logits are those of its features in full precision.
    full = features.float().mean((1, 2, 3)) @ model.head.fc.weight.T + model.head.fc.bias
    torch.testing.assert_close(logits, full, rtol=1e-5, atol=1e-5)


def gradients(model, clips, run=None):
    """Of every parameter, with the running statistics after one step, of a loss that every parameter matters to."""
    logits, features = (model if run is None else run)(clips)
    (logits.square().sum() + features.pow(3).sum()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return grads | {name: buffer for name, buffer in model.named_buffers() if "running" in name}


def assert_alike(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-5 * value.abs().max().item(), msg=name)


def test_a_model_compiles_and_computes_the_same():
    """A Swin. A compiled TSM trains as one that isn't in test_distilling.py."""
    torch._dynamo.reset()
    model = lively("swin", {"depths": [2, 1]}, dropout=0.0)
    twin = copy.deepcopy(model)
    enable_grad_checkpointing(twin, compiled=True)
    clips = random_clips(2, 3, 16)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert_alike(gradients(twin, clips, compiled), gradients(model, clips))


def test_a_model_compiles_with_gradients_under_autocast():
    torch._dynamo.reset()
    model = lively("slowonly", dropout=0.0)
    clips = random_clips(2, 3, 16)
    grads = []
    for run in (model, torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            logits, features = run(clips)
        (logits.sum() + features.float().sum()).backward()
        grads.append((features.detach().float(), next(run.parameters()).grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=0.05, atol=0.05)


def kept(model, clips):
    """Bytes that a forward pass keeps for the backward pass, parameters aside."""
    own = {p.data_ptr() for p in model.parameters()}
    sizes = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(clips)
    assert output.logits.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("arch", [*ARCHS, "efficientnet"])
def test_checkpointed_gradients_and_statistics_are_the_same_and_less_is_kept(arch):
    if arch == "efficientnet":
        model = build_model(config("tsn", "tf_efficientnet_lite0", drop_path=0.3, dropout=0.0))
    else:
        args = {"depths": [2, 2]} if arch == "swin" else {"layers": [2, 2, 2, 2], "stem_type": "deep", "stem_width": 8}
        model = lively(arch, args, drop_path=0.3, dropout=0.0)
    twin = copy.deepcopy(model)
    enable_grad_checkpointing(twin, compiled=False)
    clips = random_clips(4, 3, 24)
    results = []
    for net in (model, twin):
        torch.manual_seed(3)  # a recomputed block drops the same paths
        results.append(gradients(net, clips))
    assert_alike(*results)
    assert kept(twin, clips) < 0.7 * kept(model, clips)
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_a_net_without_blocks_to_run_again_is_refused():
    with torch.device("meta"):
        model = build_model(config("tsn", "vgg11"))
    with pytest.raises(ReskdError, match="the network VGG has no gradient checkpointing"):
        enable_grad_checkpointing(model, compiled=False)


def test_convolutions_get_the_layout_of_their_rank_and_compute_the_same():
    clips = random_clips(2, 3, 24)
    for arch, rank in [("tsm", 4), ("slowonly", 5), ("swin", 5)]:
        model = lively(arch).eval()
        expected = model(clips).features
        wide = [p for p in model.parameters() if p.dim() > 2]
        assert {p.dim() for p in wide} == {rank}
        layout = torch.channels_last if rank == 4 else torch.channels_last_3d
        assert not all(p.is_contiguous(memory_format=layout) for p in wide)
        optimizer = torch.optim.SGD(model.parameters())
        laid = to_device(model, torch.device("cpu"))
        assert laid is model and all(p.is_contiguous(memory_format=layout) for p in wide)
        assert next(iter(model.parameters())) is optimizer.param_groups[0]["params"][0]
        torch.testing.assert_close(model(clips).features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["tsn", "tsm", "slowonly"])
def test_stochastic_depth_rises_to_the_last_block(arch):
    model = small(arch, {"layers": [1, 2, 1, 1]}, drop_path=0.2)
    blocks = [block for i in range(1, 5) for block in getattr(model.backbone, f"layer{i}")]
    rates = [0.0 if block.drop_path is None else block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    "name, args, width, stride",
    [
        ("tf_efficientnet_lite0", {}, 1280, 32),
        ("regnetx_002", {}, 368, 32),
        ("convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 32, 32),
        ("mobilenetv3_small_050", {}, 288, 32),
        ("densenet121", {"growth_rate": 8, "block_config": [1, 1, 1, 1]}, 17, 32),
    ],
)
def test_tsn_takes_any_network_that_gives_a_map(name, args, width, stride):
    model = build_model(config("tsn", name, args, dropout=0.0))
    clips = random_clips(2, 3, 64)
    logits, features = model(clips)
    assert features.shape == (2, 3, 64 // stride, 64 // stride, width) and logits.shape == (2, 5)
    (logits.square().sum() + features.pow(3).sum()).backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
    frozen = {n.split(".")[1] for n, _ in model.named_parameters()} - {n.split(".")[1] for n in trained}
    assert frozen <= {"head", "conv_head"}  # ConvNeXt's last norm, MobileNet's last convolution
    model.eval()
    apart = torch.cat([model(clips[:, [i] * 3]).features[:, :1] for i in range(3)], 1)
    torch.testing.assert_close(model(clips).features, apart, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_copies_keep_the_shift_and_buffers_are_not_saved():
    model = small("tsm", {"zero_init_last": False}, mean=(0.1, 0.2, 0.3)).eval()
    clips = random_clips(1, 3, 16)
    expected = model(clips)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(clips).features, expected.features)
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}
    assert set(small("tsn").state_dict()) == set(model.state_dict())


def test_the_classifier_starts_small():
    weight = small(num_classes=2000).head.fc.weight
    assert weight.std().item() == pytest.approx(0.001, rel=0.05) and weight.shape == (2000, 64)


def test_clips_of_another_length_are_refused_before_the_shift_mixes_them():
    with pytest.raises(ReskdError, match="clips of 6 frames for a model of num_frames 3"):
        small()(random_clips(1, 6, 16))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backbone": "resnet5"}, "'resnet5' is not a model of timm .*resnet50"),
        ({"backbone": "efficientnet_lite"}, "'efficientnet_lite' is not a model of timm .*efficientnet_lite4"),
        ({"arch": "tsm", "backbone": "efficientnet_b0"}, "EfficientNet, and arch tsm needs a ResNet"),
        ({"arch": "slowonly", "backbone": "regnetx_002"}, "RegNet, and arch slowonly needs a ResNet"),
        ({"backbone": "hiera_tiny_224"}, "'hiera_tiny_224' gives no feature map at 224 px: .* choose another"),
        ({"arch": "tsm", "pooling": "own"}, "pooling: own is for tsn, .* not for tsm"),
        ({"args": {"chanels": [8]}}, "'resnet50' with args .*'chanels'"),
        ({"args": {"drop_path_rate": 0.1}}, "drop_path_rate 0.1: give it as model.drop_path"),
        ({"backbone": "vgg11", "drop_path": 0.1}, "'vgg11' .*drop_path 0.1"),
        ({"arch": "tsm", "shift_div": 100}, "shift_div 100 is more than the 64 channels"),
    ],
)
def test_a_backbone_that_can_not_be_had_is_named(changes, message):
    with pytest.raises(ReskdError, match=message):
        build_model(config(**changes))


def test_pretrained_weights_that_can_not_be_had_are_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ReskdError, match=r"pretrained weights of the backbone 'resnet18'.*local checkpoint"):
        build_model(config(backbone="resnet18"), pretrained=True)
