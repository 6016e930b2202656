"""Parameter groups and schedules, against what their sources say, formula by formula."""

import math

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.student.config import OptimConfig, ScheduleConfig, TrainConfig
from stages.student.new_student import with_warmup
from stages.student.optim import GROUPS, build_optimizer, build_schedule, param_groups, scaled_lr

RESNET = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1]}
SCHEMES = list(GROUPS)


def resnet() -> nn.Module:
    return build_model(ModelConfig(arch="tsm", backbone="resnet18", args=RESNET, num_classes=3, num_frames=2))


class SwinLike(nn.Module):
    """Names and kinds of the parameters of a Video Swin: two of each."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Module(), nn.Module()
        self.backbone.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, 4, 2), "norm": nn.LayerNorm(4)})
        self.backbone.attn = nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})
        self.backbone.attn.relative_position_bias_table = nn.Parameter(torch.zeros(15, 2))
        self.backbone.norm = nn.LayerNorm(4)
        self.head.fc = nn.Linear(4, 3)


class Wrapped(nn.Module):
    """A student with the projector to its teacher's width."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.projector = model, nn.Linear(4, 8)


def groups_of(
    model: nn.Module, scheme: str, lr: float = 1.0, decay: float = 0.5
) -> dict[str, tuple[str, float, float]]:
    """Parameter -> (its group, rate, decay)."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["name"], group["lr"], group["weight_decay"])
        for group in param_groups(model, OptimConfig(groups=scheme, weight_decay=decay), lr)
        for p in group["params"]
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [resnet, SwinLike, lambda: Wrapped(SwinLike())])
def test_every_trainable_parameter_is_in_exactly_one_group(make, scheme):
    model = make()
    frozen = next(model.parameters()).requires_grad_(False)
    groups = param_groups(model, OptimConfig(groups=scheme), 0.1)
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in model.parameters()} - {id(frozen)}
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names) and set(names) <= set(GROUPS[scheme])
    assert groups[0]["lr"] == 0.1  # the rate that the log shows is the config's


def test_matrices_are_the_weight_decay_groups_of_timm():
    model = resnet()
    theirs = param_groups_weight_decay(model, 0.5)
    mine = param_groups(model, OptimConfig(groups="matrices", weight_decay=0.5), 1.0)
    assert [[id(p) for p in g["params"]] for g in mine] == [[id(p) for p in g["params"]] for g in theirs]
    assert [g["weight_decay"] for g in mine] == [g["weight_decay"] for g in theirs] == [0.0, 0.5]


def test_all_decays_everything_at_one_rate():
    assert set(groups_of(resnet(), "all").values()) == {("all", 1.0, 0.5)}


def test_tsm_gives_biases_twice_the_rate_and_decay_to_weights_alone():
    """mmaction2's TSMOptimizerConstructor with fc_lr5 false, told from the kinds of modules rather than from names."""
    model = resnet()
    groups = groups_of(model, "tsm")
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d):
                expected = ("norms", 1.0, 0.0)
            elif name == "bias":
                expected = ("biases", 2.0, 0.0)
            else:
                expected = ("weights", 1.0, 0.5)
            assert groups[f"{path}.{name}"] == expected, path
    assert groups["backbone.layer2.0.downsample.1.weight"][0] == "norms"  # a name that doesn't say so
    assert groups["head.fc.bias"] == ("biases", 2.0, 0.0)


@pytest.mark.parametrize(
    "part, intended, seed",
    [
        ("backbone.patch_embed.proj.weight", (0.1, 0.5), (0.1, 0.5)),
        ("backbone.attn.qkv.bias", (0.1, 0.5), (0.1, 0.5)),
        ("backbone.patch_embed.norm.weight", (0.1, 0.0), (0.1, 0.5)),
        ("backbone.norm.bias", (0.1, 0.0), (0.1, 0.5)),
        ("backbone.attn.relative_position_bias_table", (0.1, 0.0), (1.0, 0.0)),
        ("head.fc.weight", (1.0, 0.5), (1.0, 0.5)),
        ("head.fc.bias", (1.0, 0.5), (1.0, 0.5)),
    ],
)
def test_swin_as_intended_and_as_the_seed_has_it(part, intended, seed):
    for model, prefix in ((SwinLike(), ""), (Wrapped(SwinLike()), "model.")):
        assert groups_of(model, "swin")[prefix + part][1:] == pytest.approx(intended)
        assert groups_of(model, "swin_upstream")[prefix + part][1:] == pytest.approx(seed)


def mmcv_custom_keys(name: str) -> tuple[float, float]:
    """(lr_mult, decay_mult) that mmcv's constructor gives a parameter: of the longest key within its name."""
    keys = {"absolute_pos_embed": (1, 0), "relative_position_bias_table": (1, 0), "norm": (1, 0), "backbone": (0.1, 1)}
    return next((keys[key] for key in sorted(keys, key=len, reverse=True) if key in name), (1, 1))


def test_swin_upstream_is_what_mmcv_makes_of_the_seeds_keys():
    for name, (_, rate, decay) in groups_of(SwinLike(), "swin_upstream", decay=1.0).items():
        assert (rate, decay) == mmcv_custom_keys(name), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_projector_is_trained_like_the_head(scheme):
    groups = groups_of(Wrapped(SwinLike()), scheme)
    for part in ("weight", "bias"):
        assert groups[f"projector.{part}"] == groups[f"model.head.fc.{part}"]
    assert groups["projector.weight"][1] == 1.0


@pytest.mark.parametrize("name, kind", [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_rate_is_scaled_to_the_batch(name, kind):
    optimizer = build_optimizer(resnet(), OptimConfig(name=name, groups="tsm", lr=0.01, lr_batch=64), global_batch=128)
    assert type(optimizer) is kind
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"weights": 0.02, "biases": 0.04, "norms": 0.02}


def rates(schedule: ScheduleConfig, steps_per_epoch: int, scheme: str = "tsm") -> dict[str, list[float]]:
    """Rate of every step of a run, by group."""
    config = OptimConfig(name="sgd", groups=scheme, lr=0.1, lr_batch=64)
    optimizer = build_optimizer(SwinLike() if "swin" in scheme else resnet(), config, 64)
    made = build_schedule(optimizer, schedule, steps_per_epoch)
    found = {group["name"]: [] for group in optimizer.param_groups}
    for step in range(schedule.epochs * steps_per_epoch):
        made.step_update(step)
        for group in optimizer.param_groups:
            found[group["name"]].append(group["lr"])
    return found


@pytest.mark.parametrize("scale, factor", [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_the_rate_follows_the_global_batch_as_the_config_says(scale, factor):
    config = OptimConfig(lr=0.1, lr_batch=64, scale=scale)
    assert scaled_lr(config, 256) == pytest.approx(0.1 * factor)
    assert scaled_lr(config, 64) == 0.1


def test_a_cosine_over_steps_begins_where_the_warm_up_ends():
    found = rates(ScheduleConfig(epochs=6, warmup_epochs=1.5), 4)["weights"]
    assert found[:6] == pytest.approx([0.1 * (i + 1) / 7 for i in range(6)])
    assert found[6:] == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 18)) for i in range(18)])


def test_a_cosine_by_epoch_changes_between_epochs_only():
    """mmcv's CosineAnnealing: base / 2 * (1 + cos(pi * epoch / epochs))."""
    found = rates(ScheduleConfig(epochs=5, by_epoch=True), 3)["weights"]
    assert found == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 5)) for e in range(5) for _ in range(3)])


def test_a_warm_up_rises_by_the_step_beneath_a_cosine_by_epoch():
    """mmcv's warm-up is a factor on the rate of the epoch, and the cosine doesn't wait for its end."""
    found = rates(ScheduleConfig(epochs=5, warmup_epochs=2.5, by_epoch=True), 4)["weights"]
    cosine = [0.05 * (1 + math.cos(math.pi * e / 5)) for e in range(5) for _ in range(4)]
    assert found == pytest.approx([rate * min(1, (i + 1) / 11) for i, rate in enumerate(cosine)])


@pytest.mark.parametrize("by_epoch", [True, False])
def test_steps_fall_at_the_beginning_of_their_epochs(by_epoch):
    """Upstream's SlowOnly, 150 epochs with milestones 90 and 130 after 10 of warm-up, a tenth as long."""
    config = {"name": "step", "epochs": 15, "warmup_epochs": 1, "milestones": (9, 13), "gamma": 0.1}
    found = rates(ScheduleConfig(**config, by_epoch=by_epoch), 10)["weights"]
    assert found[:10] == pytest.approx([0.1 * (i + 1) / 11 for i in range(10)])
    assert found[10:] == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 20)


@pytest.mark.parametrize("name, milestones", [("cosine", ()), ("step", (2,))])
@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("scheme", ["tsm", "swin", "swin_upstream"])
def test_groups_keep_their_ratio_in_warm_up_and_after_it(name, milestones, by_epoch, scheme):
    config = ScheduleConfig(name=name, epochs=4, warmup_epochs=1.5, milestones=milestones, by_epoch=by_epoch)
    found = rates(config, 4, scheme)
    first = next(iter(found.values()))
    for group, own in found.items():
        assert own == pytest.approx([rate * GROUPS[scheme][group].rate for rate in first])


def test_a_schedule_goes_on_in_a_resumed_optimizer():
    config = OptimConfig(name="adamw", groups="tsm", lr=0.1)
    schedule = ScheduleConfig(epochs=3, warmup_epochs=1)
    before, after = build_optimizer(resnet(), config, 64), build_optimizer(resnet(), config, 64)
    build_schedule(before, schedule, 5).step_update(3)
    made = build_schedule(after, schedule, 5)
    after.load_state_dict(before.state_dict())
    for optimizer, own in ((before, build_schedule(before, schedule, 5)), (after, made)):
        own.step_update(7)
        assert [g["name"] for g in optimizer.param_groups] == ["weights", "biases", "norms"]
    assert [g["lr"] for g in before.param_groups] == [g["lr"] for g in after.param_groups]


def test_a_step_moves_each_group_at_its_own_rate():
    """Plain SGD without momentum on a gradient of ones: a parameter moves by its rate."""
    model = Wrapped(SwinLike())
    optimizer = build_optimizer(model, OptimConfig(name="sgd", groups="swin", lr=0.1, weight_decay=0, momentum=0), 64)
    build_schedule(optimizer, ScheduleConfig(epochs=2, by_epoch=True), 1).step_update(1)  # cos(pi/2): half the rate
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).flatten()
        torch.testing.assert_close(
            moved, torch.full_like(moved, 0.005 if "backbone" in name else 0.05), atol=1e-6, rtol=0
        )


def test_by_default_adamw_warms_up_for_a_twentieth_of_its_epochs_and_sgd_not_at_all():
    def epochs(name: str, **schedule) -> float:
        fixed = {"output": "run", "data": {"train": "data"}, "optim": {"name": name}}
        return with_warmup(TrainConfig.model_validate({**fixed, "schedule": {"epochs": 40, **schedule}})).warmup_epochs

    assert epochs("adamw") == pytest.approx(2.0) and epochs("sgd") == 0
    assert epochs("adamw", warmup_epochs=0) == 0 and epochs("sgd", warmup_epochs=3) == 3
