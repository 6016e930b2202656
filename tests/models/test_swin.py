import itertools

import torch
from pytest import approx, mark, raises
from torchvision.models.video import swin3d_b, swin3d_s, swin3d_t
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from cache.errors import ReskdError
from stages.models.architectures import build_model
from stages.models.swin import ATTENTION, ExactAttention
from stages.models.video_model import model_stats
from tests.models.small_models import SWIN, config, random_clips, small

WINDOW = (8, 7, 7)


def rows_by_hand(places, window):
    """[N, N] rows of the bias table, a pair at a time: the table runs over the differences of t, y and x, from the most
    negative to the most positive that a window of size `window` holds."""
    d, h, w = window
    coordinates = list(itertools.product(*map(range, places)))
    return torch.tensor(
        [
            [
                ((t - u + d - 1) * (2 * h - 1) + (y - v + h - 1)) * (2 * w - 1) + (x - z + w - 1)
                for u, v, z in coordinates
            ]
            for t, y, x in coordinates
        ]
    )


def rows_of(rel_pos, places, window):
    """The same as an attention layer has it: of a table whose every row holds its own number."""
    layer = ATTENTION[rel_pos](2, list(window), [0, 0, 0], num_heads=2)
    rows = torch.arange(len(layer.relative_position_bias_table), dtype=torch.float32)
    layer.relative_position_bias_table.data = torch.stack([rows, rows + 0.5], 1)
    bias = layer.get_relative_position_bias(list(places))
    assert torch.equal(bias[0, 0] + 0.5, bias[0, 1])
    return bias[0, 0].long()


@mark.parametrize(
    "places",
    [(8, 7, 7), (8, 4, 4), (8, 3, 3), (8, 5, 5), (4, 7, 7), (1, 6, 6), (2, 3, 2), (8, 7, 3), (1, 1, 1)],
    ids=str,
)
def test_each_pair_has_the_bias_of_its_distance(places):
    """(8, 4, 4) is the last stage at 112 px, (8, 6, 6) and (8, 3, 3) the last two at 96 px, (8, 5, 5) is one of 72 px."""
    assert torch.equal(rows_of("exact", places, WINDOW), rows_by_hand(places, WINDOW))


@mark.parametrize(
    "places, right", [((8, 7, 7), 1.0), ((4, 7, 7), 1.0), ((8, 4, 4), 0.026), ((8, 6, 6), 0.015)], ids=str
)
def test_the_seeds_bias_is_right_at_full_windows_or_short_clips_and_wrong_on_small_maps(places, right):
    same = rows_of("upstream", places, WINDOW) == rows_by_hand(places, WINDOW)
    assert same.float().mean().item() == approx(right, abs=5e-4)


@mark.parametrize("places", [(2, 4, 4), (4, 3, 5), (3, 6, 2)], ids=str)
@torch.no_grad()
def test_attention_on_a_small_map_is_that_of_a_window_of_its_size(places):
    """Torchvision's layer, made for a window of the map's size, with those rows of the larger window's table."""
    torch.manual_seed(0)
    mine = ExactAttention(8, [4, 7, 7], [2, 3, 3], num_heads=2)
    theirs = ShiftedWindowAttention3d(8, list(places), [0, 0, 0], num_heads=2)
    table = torch.empty_like(theirs.relative_position_bias_table)
    table[rows_by_hand(places, places)] = mine.relative_position_bias_table[rows_by_hand(places, (4, 7, 7))]
    state = mine.state_dict() | {
        "relative_position_bias_table": 100 * table,
        "relative_position_index": theirs.relative_position_index,
    }
    theirs.load_state_dict(state, strict=True)
    mine.relative_position_bias_table.mul_(100)
    features = torch.randn(2, *places, 8)
    expected = theirs(features)
    torch.testing.assert_close(mine(features), expected, rtol=1e-5, atol=1e-6)
    seeds = ShiftedWindowAttention3d(8, [4, 7, 7], [2, 3, 3], num_heads=2)
    seeds.load_state_dict(mine.state_dict())
    assert (seeds(features) - expected).abs().max() > 0.01


def torchvisions(model, args, size, num_frames):
    """Torchvision's net with the same weights, its clips and the map after its last norm."""
    net = SwinTransformer3d(**args, num_classes=5, stochastic_depth_prob=0.0).eval()
    state = {k.removeprefix("backbone."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    head = {f"head.{k}": v for k, v in model.head.fc.state_dict().items()}
    net.load_state_dict(state | head, strict=True)
    maps = []
    net.norm.register_forward_hook(lambda module, inputs, output: maps.append(output))
    clips = random_clips(2, num_frames, size)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (clips / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return clips, net(pixels.transpose(1, 2)), maps[0]


@mark.parametrize(
    "rel_pos, size, num_frames, same",
    [
        ("exact", 24, 4, True),  # maps of 6x6 and 3x3: full windows of 3x3
        ("exact", 31, 5, True),  # padded in each direction
        ("exact", 24, 1, True),  # the window is cut in time alone
        ("exact", 16, 4, False),  # the last map is 2x2
        ("upstream", 16, 4, True),
        ("upstream", 9, 3, True),
    ],
)
@torch.no_grad()
def test_a_model_equals_torchvisions_but_for_the_bias_of_small_maps(rel_pos, size, num_frames, same):
    torch.manual_seed(0)
    model = small("swin", rel_pos=rel_pos, num_frames=num_frames).eval()
    for name, parameter in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(parameter)
    clips, logits, features = torchvisions(model, SWIN, size, num_frames)
    output = model(clips)
    assert torch.equal(output.features, features) is same
    if same:
        torch.testing.assert_close(output.logits, logits, rtol=1e-5, atol=1e-6)
    else:
        assert (output.features - features).abs().max() > 1e-3


@mark.parametrize("name, build", [("swin3d_t", swin3d_t), ("swin3d_s", swin3d_s), ("swin3d_b", swin3d_b)])
def test_keys_and_shapes_are_torchvisions(name, build):
    with torch.device("meta"):
        theirs = {k: v.shape for k, v in build().state_dict().items() if not k.startswith("head.")}
        mine = build_model(config("swin", name)).backbone.state_dict()
    assert {k: v.shape for k, v in mine.items()} == theirs
    assert name == "swin3d_t" or len(theirs) == 353 - 2  # without the head's two


@mark.parametrize("num_frames", [1, 2, 3, 4, 5])
@mark.parametrize("size", [8, 9, 18, 33])
@torch.no_grad()
def test_any_size_and_number_of_frames(size, num_frames):
    model = small("swin", num_frames=num_frames).eval()
    logits, features = model(random_clips(1, num_frames, size))
    side = -(-size // 8)
    assert features.shape == (1, -(-num_frames // 2), side, side, 64) and logits.shape == (1, 5)
    assert model_stats(model, size).grid == tuple(features.shape[1:4])
    torch.testing.assert_close(features.mean(-1), torch.zeros(features.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(-1, correction=0), torch.ones(features.shape[:-1]), rtol=0, atol=0.02)


@mark.parametrize(
    "size, sides", [(224, [56, 28, 14, 7]), (112, [28, 14, 7, 4]), (96, [24, 12, 6, 3]), (72, [18, 9, 5, 3])]
)
def test_maps_of_the_stages(size, sides):
    with torch.device("meta"):
        model = build_model(config("swin", "swin3d_t", num_frames=32)).eval()
    seen = []
    for stage in list(model.backbone.features)[::2]:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(list(output.shape[1:4])))
    model.extract(torch.empty(1, 32, 3, size, size, dtype=torch.uint8, device="meta"))
    assert seen == [[16, side, side] for side in sides]


def test_the_count_has_attention_in_it():
    """Multiply-adds by hand: 24 px, 4 frames: 2x6x6 places of 32 channels in windows of 18, then 2x3x3 of 64 in one."""

    def block(places, width, window):
        linear = places * width * (3 * width + width + 2 * 4 * width)  # qkv, projection, and the two of the MLP
        return linear + 2 * places * window * width  # queries by keys, weights by values

    patches = 72 * 32 * 3 * 2 * 4 * 4
    merge = 18 * (4 * 32) * (2 * 32)
    by_hand = patches + block(72, 32, 18) + merge + 2 * block(18, 64, 18) + 64 * 5
    assert model_stats(small("swin", num_frames=4), 24).gmacs * 1e9 == approx(by_hand, abs=1)


def test_stochastic_depth_rises_to_the_last_block():
    model = build_model(config("swin", "swin3d_t", {**SWIN, "depths": [2, 3]}, drop_path=0.2))
    rates = [m.stochastic_depth.p for stage in list(model.backbone.features)[::2] for m in stage]
    assert rates == approx([0, 0.05, 0.1, 0.15, 0.2])


@mark.parametrize(
    "backbone, args, message",
    [
        ("swin3d_l", {}, "'swin3d_l' is not a Video Swin; choose swin3d_t, swin3d_s, swin3d_b"),
        ("resnet50", {}, "'resnet50' is not a Video Swin"),
        ("swin3d_t", {"embed_dims": 8}, "args.embed_dims is no argument of a Swin; known: embed_dim, depths"),
        ("swin3d_t", {"depths": 2}, r"args.depths 2 must be made of whole numbers above 0, like \[2, 2, 6, 2\]"),
        ("swin3d_t", {"embed_dim": [96]}, r"args.embed_dim \[96\] must"),
        ("swin3d_t", {"window_size": [8, 7, 0]}, r"args.window_size \[8, 7, 0\] must"),
        ("swin3d_t", {"window_size": [7, 7]}, r"window_size \[7, 7\] and patch_size \[2, 4, 4\] must be \[t, h, w\]"),
        (
            "swin3d_t",
            {"depths": [2, 2]},
            r"depths \[2, 2\] and num_heads \[3, 6, 12, 24\] must have one number per stage",
        ),
        ("swin3d_t", {"depths": [1], "num_heads": [3]}, "two blocks or more"),
        ("swin3d_t", {"num_heads": [3, 5, 12, 24]}, r"num_heads \[3, 5, 12, 24\] must divide .* \[96, 192, 384, 768\]"),
    ],
)
def test_a_swin_that_can_not_be_had_is_named(backbone, args, message):
    with raises(ReskdError, match=message):
        build_model(config("swin", backbone, args))


def test_timm_has_no_weights_of_a_swin():
    with raises(ReskdError, match=r"'swin3d_s': give the path of a checkpoint \(init.path\)"):
        build_model(config("swin", "swin3d_s"), pretrained=True)
