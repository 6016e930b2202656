"""The shipped configs: headed as promised, true to upstream's recipes, paired fairly, and models that fit."""

import dataclasses
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cache.identity import Identity
from cache.manifest import FORMAT, bytes_of_clip_view
from cache.view import BLOCK
from stages.bench.config import StudyConfig
from stages.bench.real.config import RealConfig
from stages.config.file import load_config, read_values
from stages.demo.config import DemoConfig
from stages.distill.losses import LOSSES
from stages.distill.student import build_student
from stages.distill.targets import TargetDecoder, loss_terms
from stages.evaluate.config import EvaluateConfig
from stages.models.architectures import build_model
from stages.models.config import ModelConfig
from stages.models.grad_checkpointing import enable_grad_checkpointing
from stages.models.video_model import ModelStats, model_stats
from stages.packs.config import PackConfig
from stages.stream.batch import Batch
from stages.student.cohort import check_shared
from stages.student.cohort_config import load_cohort
from stages.student.config import TrainConfig
from stages.student.new_student import with_warmup
from stages.student.optim import build_optimizer, build_schedule
from stages.sweep.config import load_sweep
from stages.teacher.config import CacheConfig, FeaturesConfig

ROOT = Path(__file__).parents[1]
SHIPPED = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.relative_to(ROOT).parts[1] != "base"]
BASES = sorted((ROOT / "configs" / "base").rglob("*.yaml"))
CLASSES = {"actnet": 200, "fcvid": 239, "minik": 200, "sthv2": 174, "k400": 400}
ZOO = [p for p in SHIPPED if p.parent.name in CLASSES]
CACHES, RUNS = ([p for p in ZOO if p.stem.startswith("cache") is wanted] for wanted in (True, False))
RESKD = [p for p in RUNS if p.stem.startswith("rkd")]
DISTILLED = [name for name, loss in LOSSES.items() if loss.teacher]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs").with_suffix(""))


def each(files: list[Path]):
    return pytest.mark.parametrize("file", files, ids=short)


MANY = {"cohort": load_cohort, "sweep": load_sweep}


@cache
def load(file: Path) -> TrainConfig | CacheConfig | PackConfig | DemoConfig | StudyConfig | dict[str, TrainConfig]:
    if file.stem in MANY:
        return MANY[file.stem](file)
    if file.stem == "real":
        return load_config(RealConfig, file, ["videos=videos", "clips=clips.csv"])  # which its command asks for
    own = {"cache": CacheConfig, "pack": PackConfig, "demo": DemoConfig, "study": StudyConfig}
    return load_config(own.get(file.stem.split("_")[0], TrainConfig), file)


def fair_of(file: Path) -> Path:
    return file.parent / yaml.safe_load(file.read_text())["base"]


def complete(file: Path) -> ModelConfig:
    return load(file).model.model_copy(update={"num_classes": CLASSES[file.parent.name]})


def header(file: Path) -> list[str]:
    """The comment lines at the top, without their `#`."""
    lines = file.read_text().splitlines()
    return [line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


def said(file: Path, name: str) -> str:
    """What a header says of `name`, once."""
    (line,) = [line for line in header(file) if line.startswith(name + ": ")]
    return line.removeprefix(name + ": ")


# ------------------------------------------------------------------------------------------------- every config


@each(SHIPPED)
def test_a_config_is_valid_and_headed_by_the_command_that_runs_it(file):
    config = load(file)
    own = {CacheConfig: "cache-teacher", PackConfig: "pack", DemoConfig: "demo", StudyConfig: "bench fidelity",
           RealConfig: "bench real"}  # fmt: skip
    command = "sweep" if file.stem == "sweep" else own.get(type(config), "train-student")
    line = header(file)[1]
    assert f"pipeline.py {command}" in line
    assert isinstance(config, DemoConfig | StudyConfig | RealConfig) or line.endswith(
        f"--config {file.relative_to(ROOT)}"
    )


@each([p for p in SHIPPED if p.stem in MANY])
def test_students_of_a_config_share_a_stream_and_the_readme_names_it(file):
    students = load(file)
    check_shared(students)
    base = load(file.parent / yaml.safe_load(file.read_text())["base"])
    assert len(students) > 2 and {config.data.cache for config in students.values()} == {base.data.cache}
    assert {config.output.parent for config in students.values()} == {Path("runs") / short(file)}
    assert header(file)[1] in (ROOT / "README.md").read_text()


def test_every_base_serves_some_config():
    def bases(file: Path) -> set[Path]:
        named = yaml.safe_load(file.read_text()).get("base", [])
        found = {(file.parent / name).resolve() for name in ([named] if isinstance(named, str) else named)}
        return found | {deeper for base in found for deeper in bases(base)}

    assert set(BASES) <= {base for file in SHIPPED for base in bases(file)}


# ----------------------------------------------------------------------------------------------------- the zoo


@each(ZOO)
def test_a_header_tells_the_hardware_the_figure_and_upstreams_file(file):
    assert re.match(r"\d GPUs", said(file, "Hardware"))
    expected = said(file, "Expected")
    sourced = re.search(
        r"\d\d\.\d+ %.*(README of upstream|model zoo|torchvision)|(model zoo|torchvision).*\d\d\.\d+ %", expected
    )
    assert expected.startswith("none published") or sourced
    assert re.match(r"(none\b.*\.|configs/myconfig/\S+\.py)$", said(file, "Upstream"))


@each(RUNS)
def test_a_run_is_named_like_its_file_and_evaluated_by_its_header(file):
    config = load(file)
    assert config.output == Path("runs") / short(file)
    words = header(file)[2].split()
    assert words[:5] == ["uv", "run", "pipeline.py", "evaluate", f"{config.output}/last.safetensors"]
    options = dict(zip(words[5::2], words[6::2], strict=True))
    EvaluateConfig.model_validate({"checkpoint": words[4]} | {k.removeprefix("--"): v for k, v in options.items()})
    assert options["--data"] == str(config.data.val)
    assert options["--protocol"] == PROTOCOLS.get(file.stem, PROTOCOLS.get(config.model.arch, "1x1"))


PROTOCOLS = {"tsm_r50_224": "2x3", "tsm_r50_112": "2x3", "slowonly": "10x3", "swin": "4x3"}

# upstream's file -> arch, backbone, frames, size, (sampling, stride, crop, flip), optimizer, rate, clips of a step, decay,
# groups, largest gradient norm, epochs, warm-up, clips of one GPU, micro-batches, drop path. From upstream's files, with
# what they inherit.
MSC, STILL = ("segments", 1, "multi_scale_crop", 0.5), ("segments", 1, "multi_scale_crop", 0.0)
SLOW, SLOW_STILL = ("dense", 8, "random_resized_crop", 0.5), ("dense", 8, "random_resized_crop", 0.0)
SWIN = ("dense", 2, "random_resized_crop", 0.5)
R50, R152 = "resnet50.tv_in1k", "resnet152.tv_in1k"
CTOR, PLAIN = ("sgd", 0.01, 64, 1e-4, "tsm", 20), ("sgd", 0.01, 64, 1e-4, "all", 40)
TSM = ("sgd", 0.0075, 96, 5e-4, "tsm", 20)
ONE_GROUP = ("sgd", 0.01, 64, 1e-4, "all", 20)  # the schedule of upstream's ResKD has no paramwise_cfg
ADAMW, ADAMW_B = ("adamw", 1e-3, 512, 0.02, "swin_upstream", None), ("adamw", 5e-4, 512, 0.05, "swin_upstream", None)
UPSTREAM = {
    "tsn/tsn_r50_1x1x16_50e_actnet_rgb": ("tsn", R50, 16, 224, MSC, *CTOR, 50, 0, 8, 1, 0),
    "tsn/tsn_r152_1x1x16_50e_actnet_rgb": ("tsn", R152, 16, 224, MSC, *CTOR, 50, 0, 8, 1, 0),
    "tsn/tsn_r152_1x1x16_50e_fcvid_rgb": ("tsn", R152, 16, 224, MSC, *CTOR, 50, 0, 8, 1, 0),
    "tsn/tsn_r152_1x1x8_50e_minik_rgb": ("tsn", R152, 8, 224, MSC, *CTOR, 50, 0, 8, 1, 0),
    "tsn/tsn_r50_1x1x8_50e_minik_rgb": ("tsn", R50, 8, 224, MSC, *CTOR, 50, 0, 8, 1, 0),
    "tsm/tsm_r50_1x1x8_50e_sthv2_rgb": ("tsm", R50, 8, 224, STILL, *TSM, 50, 0, 12, 1, 0),
    "slowonly/slowonly_r50_8x8x1_150e_k400_rgb": ("slowonly", R50, 8, 224, SLOW, *PLAIN, 150, 10, 8, 1, 0),
    "swin/swin_base_32x2x1_50e_k400": ("swin", "swin3d_b", 32, 224, SWIN, *ADAMW_B, 50, 2.5, 8, 8, 0.2),
    "swin/swin_small_32x2x1_30e_k400": ("swin", "swin3d_s", 32, 224, SWIN, *ADAMW, 30, 2.5, 8, 8, 0.1),
    "tsn/tsn_r50_160p_1x1x16_50e_actnet_rgb": ("tsn", R50, 16, 160, MSC, *PLAIN, 50, 0, 8, 1, 0),
    "tsn/tsn_r50_112p_1x1x16_50e_actnet_rgb": ("tsn", R50, 16, 112, MSC, *PLAIN, 50, 0, 8, 1, 0),
    "tsn/tsn_r50_96p_1x1x16_50e_actnet_rgb": ("tsn", R50, 16, 96, MSC, *PLAIN, 50, 0, 8, 1, 0),
    "tsn/tsn_r50_72p_1x1x16_50e_actnet_rgb": ("tsn", R50, 16, 72, MSC, *PLAIN, 50, 0, 8, 1, 0),
    "tsn/tsn_r152_112p_1x1x16_50e_actnet_rgb": ("tsn", R152, 16, 112, MSC, *CTOR, 50, 0, 8, 1, 0),
    "tsn/tsn_r50_112p_1x1x8_50e_minik_rgb": ("tsn", R50, 8, 112, MSC, *PLAIN, 50, 0, 8, 1, 0),
    "tsm/tsm_r50_112p_1x1x8_50e_sthv2_rgb": ("tsm", R50, 8, 112, STILL, *TSM, 50, 0, 12, 1, 0),
    "slowonly/slowonly_r50_112p_8x8x1_150e_k400_rgb": ("slowonly", R50, 8, 112, SLOW, *PLAIN, 150, 10, 8, 1, 0),
    "swin/swin_small_112p_32x2x1_30e_k400": ("swin", "swin3d_s", 32, 112, SWIN, *ADAMW, 30, 2.5, 8, 8, 0.1),
    "rkd/rkd_r152_1x1x16_200e_actnet": ("tsn", R50, 16, 112, MSC, *ONE_GROUP, 200, 0, 8, 1, 0),
    "rkd/rkd_r50_1x1x16_200e_actnet": ("tsn", R50, 16, 112, MSC, *ONE_GROUP, 200, 0, 8, 1, 0),
    "rkd/rkd_r152_1x1x16_200e_fcvid": ("tsn", R50, 16, 112, MSC, *ONE_GROUP, 200, 0, 8, 1, 0),
    "rkd/rkd_r152_1x1x8_100e_minik": ("tsn", R50, 8, 112, MSC, *ONE_GROUP, 100, 0, 8, 1, 0),
    "rkd/rkd_r50_1x1x8_100e_minik": ("tsn", R50, 8, 112, MSC, *ONE_GROUP, 100, 0, 8, 1, 0),
    "rkd/rkd_tsm_1x1x8_100e_sthv2": ("tsm", R50, 8, 112, STILL, *ONE_GROUP, 100, 0, 8, 1, 0),
    "rkd/rkd_slowonly_8x8x1_150e_k400": ("slowonly", R50, 8, 112, SLOW_STILL, *PLAIN, 150, 10, 8, 1, 0),
    "rkd/rkd_swins_32x2x1_60e_k400": ("swin", "swin3d_s", 32, 112, SWIN, *ADAMW, 60, 2.5, 4, 16, 0.1),
}


def ours() -> dict[str, list[Path]]:
    """Upstream's file -> the configs that name it."""
    found: dict[str, list[Path]] = {}
    for file in ZOO:
        if not said(file, "Upstream").startswith("none"):
            name = said(file, "Upstream").removeprefix("configs/myconfig/").removesuffix(".py")
            found.setdefault(name, []).append(file)
    return found


def test_each_of_upstreams_configs_has_its_own():
    assert len(UPSTREAM) == 26
    assert {name: len(files) for name, files in ours().items()} == dict.fromkeys(UPSTREAM, 1)


@pytest.mark.parametrize("name", UPSTREAM)
def test_a_recipe_is_upstreams(name):
    (file,) = ours()[name]
    config = load(file)
    model, optim, schedule = config.model, config.optim, config.schedule
    policy = config.policy or cache_of(config)[1].policy
    views = (policy.sampling, policy.stride, policy.crop, policy.flip)
    optimizer = (optim.name, optim.lr, optim.lr_batch, optim.weight_decay, optim.groups, optim.clip_grad)
    shape = (model.arch, model.backbone, model.num_frames, config.size, views)
    rest = (schedule.epochs, with_warmup(config).warmup_epochs, config.batch_size, config.accumulate, model.drop_path)
    assert (*shape, *optimizer, *rest) == UPSTREAM[name]
    assert 8 * config.batch_size * config.accumulate == optim.lr_batch and said(file, "Hardware").startswith("8 GPUs")
    assert schedule.by_epoch and model.dropout == 0.5 and optim.momentum == 0.9
    assert config.losses.random_label is (file.parent.name in ("actnet", "fcvid"))
    assert config.render_via == (224 if name.startswith("rkd") else None)


CONVOLUTIONAL = [p for p in RESKD if load(p).model.arch in ("tsn", "tsm")]


@each(CONVOLUTIONAL + sorted({fair_of(p) for p in CONVOLUTIONAL}))
def test_reskd_of_tsn_and_tsm_trains_all_parameters_alike(file):
    """mmcv's constructor without `paramwise_cfg` returns the model's parameters as they are: one rate, one decay."""
    config = load(file)
    with torch.device("meta"):
        model = build_model(complete(file))
    groups = build_optimizer(model, config.optim, 64).param_groups
    found = [(p.numel(), group["lr"], group["weight_decay"]) for group in groups for p in group["params"]]
    assert sorted(found) == sorted((p.numel(), 0.01, 1e-4) for p in model.parameters()) and len(found) == 161
    assert config.optim.clip_grad == 20


@pytest.mark.parametrize("short_side, size", [(180, 160), (128, 112), (108, 96), (80, 72)])
def test_low_resolution_baselines_are_validated_on_upstreams_crop(short_side, size):
    policy = load(ROOT / f"configs/actnet/tsn_r50_{size}.yaml").policy
    assert round(policy.center_fraction * short_side, 3) == size


# ------------------------------------------------------------------------------------- pairs, caches, teachers


def flat(values: dict, prefix: str = "") -> dict:
    items = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


def cache_of(config: TrainConfig) -> tuple[Path, CacheConfig]:
    """The one config that makes a run's cache."""
    (found,) = [(file, made) for file in CACHES if (made := load(file)).output == config.data.cache]
    return found


def teacher_of(made: CacheConfig) -> TrainConfig:
    """The config of the run whose weights a cache is made with."""
    (found,) = [c for file in RUNS if (c := load(file)).output / "last.safetensors" == made.teacher.checkpoint]
    return found


@each(RESKD)
def test_a_pair_differs_in_distillation_alone(file):
    distilled, fair = load(file), load(fair_of(file))
    a, b = flat(distilled.model_dump(mode="json")), flat(fair.model_dump(mode="json"))
    different = {key for key in {**a, **b} if a.get(key) != b.get(key) and not key.startswith("policy")}
    losses = {f"losses.{name}" for name in (*DISTILLED, "temperature")}
    assert different <= {"output", "data.cache"} | losses
    assert any(getattr(distilled.losses, name) for name in DISTILLED)
    assert fair.data.cache is None and not any(getattr(fair.losses, name) for name in DISTILLED)
    assert distilled.policy is None and cache_of(distilled)[1].policy == fair.policy
    assert fair_of(file).stem.endswith("_fair") and file.name in header(fair_of(file))[0]


@each([p for p in RUNS if p.stem.endswith("_fair")])
def test_a_fair_baseline_belongs_to_a_pair(file):
    assert file in {fair_of(other) for other in RESKD}


@each(RESKD)
def test_a_cache_is_of_the_same_data_and_frames_and_of_a_teacher_in_the_zoo(file):
    config = load(file)
    where, made = cache_of(config)
    assert f"# made by {where.name}" in file.read_text() and where.parent == file.parent
    teacher = teacher_of(made)
    assert made.data == config.data.train == teacher.data.train
    assert made.policy.num_frames == config.model.num_frames == teacher.model.num_frames
    encoding = FeaturesConfig(codec="int4", dims=256 if teacher.model.arch == "swin" else None)
    assert (teacher.size, made.views, made.targets.features) == (224, 8, encoding)
    # the teacher's own augmentation; only upstream's SlowOnly ResKD has no flip
    assert dataclasses.replace(made.policy, flip=teacher.policy.flip) == teacher.policy


def test_every_cache_serves_a_run():
    assert {cache_of(load(file))[0] for file in RESKD} == set(CACHES)


def test_only_resolutions_that_upstream_has_are_shrunk_in_upstreams_way():
    for file in RESKD:
        assert (load(file).render_via is None) is said(file, "Upstream").startswith("none")


# ---------------------------------------------------------------------------------------------------- models


@cache
def stats(model: str, size: int) -> ModelStats:
    """Of a model (as JSON, which can be a key) on shapes alone."""
    with torch.device("meta"):
        return model_stats(build_model(ModelConfig.model_validate_json(model)), size)


def stats_of(file: Path) -> ModelStats:
    return stats(load(file).model.model_copy(update={"num_classes": 400}).model_dump_json(), load(file).size)


@each(RUNS)
def test_a_model_is_built_at_its_size_and_costs_what_its_header_says(file):
    found = stats_of(file)
    assert found.grid[1] == found.grid[2] == {224: 7, 160: 5, 112: 4, 96: 3, 72: 3}[load(file).size]
    stated = re.search(r"([\d.]+) GMACs", header(file)[0])
    if stated:
        assert found.gmacs == pytest.approx(float(stated[1]), rel=0.005)


@each(RESKD)
def test_a_student_meets_the_map_of_its_teacher(file):
    config = load(file)
    teacher = teacher_of(cache_of(config)[1])
    there, here = stats_of(ROOT / "configs" / f"{teacher.output.relative_to('runs')}.yaml"), stats_of(file)
    assert there.grid[1:] == (7, 7) and there.grid[0] == here.grid[0]
    if config.losses.feature_mse:
        assert there.width == here.width == 2048  # no projector: upstream has none
    else:
        assert (there.width, here.width) == (1024, 768)


def planned(file: Path, *overrides: str) -> Identity:
    """The identity of the cache that a config makes, as far as the bytes depend on it."""
    config = load_config(CacheConfig, file, overrides)
    features = config.targets.features
    teacher = stats_of(ROOT / "configs" / config.teacher.checkpoint.parent.relative_to("runs").with_suffix(".yaml"))
    targets = {
        "logits": {"codec": config.targets.logits, "width": CLASSES[file.parent.name]},
        "features": {"codec": features.codec, "grid": list(teacher.grid), "width": features.dims or teacher.width},
    }
    return Identity(FORMAT, {}, "", config.policy, (), (), targets)


def stored_views(file: Path) -> int:
    """Clips times views, by the header."""
    views, clips = re.search(r"for (\d) views of ([\d,]+) clips", said(file, "Storage")).groups()
    assert int(views) == load(file).views
    return int(views) * int(clips.replace(",", ""))


def bytes_said(text: str) -> float:
    number, unit = re.search(r"([\d.]+) (GiB|TiB)", text).groups()
    return float(number) * 2 ** {"GiB": 30, "TiB": 40}[unit]


@each(CACHES)
def test_a_cache_takes_the_space_that_its_header_says(file):
    """As configured, and at upstream's precision by the `--set` of the header. Both before zstd."""
    (override,) = re.findall(r"--set (\S+),", said(file, "Upstream's precision"))
    assert override == "targets.features=float16"
    for line, overrides in (("Storage", ()), ("Upstream's precision", (override,))):
        assert "(before zstd)" in said(file, line)
        size = bytes_of_clip_view(planned(file, *overrides))
        (each_view,) = re.findall(r"([\d.]+) MiB a clip and view", said(file, line))
        assert float(each_view) == pytest.approx(size / 2**20, abs=0.006)
        assert bytes_said(said(file, line)) == pytest.approx(size * stored_views(file), rel=0.005)


# The part of int4 maps of 8×7×7 that zstd leaves, of one byte a number: of EfficientNet-Lite0's 1280 channels after a ReLU on
# real videos (`bench encodings`), and of random maps in a basis of 256 channels (`bench join`).
SPARSE, IN_A_BASIS = 35_432 / (8 * 7 * 7 * 1280), 38_000 / (8 * 7 * 7 * 256)


@each(CACHES)
def test_a_header_estimates_what_zstd_leaves_of_the_maps(file):
    """By what was measured on other maps. The views and the logits, some hundred bytes, count as before zstd."""
    cache = planned(file)
    maps, others = (bytes_of_clip_view(cache, targets) for targets in (["features"], ["logits"]))
    without_targets = bytes_of_clip_view(cache, [])
    in_a_basis = load(file).targets.features.dims is not None
    estimate = (maps - without_targets) * (IN_A_BASIS if in_a_basis else SPARSE) + others
    text = said(file, "After zstd")
    assert bytes_said(text) == pytest.approx(estimate * stored_views(file), rel=0.005)
    assert "estimate" in text and ("random maps in a basis of 256" if in_a_basis else "EfficientNet-Lite0") in text


@each(RESKD)
def test_the_targets_in_memory_are_what_the_zoo_says(file):
    """Each worker of 8 ranks has one stream: a window of blocks and the first block of the next window."""
    loader = load(file).loader
    assert 8 * loader.workers == loader.streams
    resident = loader.streams * (loader.window + 1) * BLOCK * bytes_of_clip_view(planned(cache_of(load(file))[0]))
    model, text = load(file).model, (ROOT / "configs/base/zoo.yaml").read_text()
    kind = "Swin" if model.arch == "swin" else f"{model.num_frames} frames"
    (gib,) = re.findall(rf"([\d.]+) GiB for {kind}", text)
    assert resident / 2**30 == pytest.approx(float(gib), rel=0.01)


# One config for each net, with and without checkpointing. At all other sizes there is a forward:
# `test_a_model_is_built_at_its_size_and_costs_what_its_header_says`.
TRAINED = {(net.arch, net.backbone, load(file).grad_checkpointing): file for file in RUNS if (net := load(file).model)}


@each(list(TRAINED.values()))
def test_every_net_trains_on_shapes(file):
    """Forward and backward at the config's size, nothing computed: each weight of the backbone gets its gradient."""
    config = load(file)
    with torch.device("meta"):
        model = build_model(complete(file)).train()
    if config.grad_checkpointing:
        enable_grad_checkpointing(model, compiled=False)
    clips = torch.empty(2, config.model.num_frames, 3, config.size, config.size, dtype=torch.uint8, device="meta")
    model.extract(clips).sum().backward()
    missing = [name for name, p in model.backbone.named_parameters() if p.grad is None or p.grad.shape != p.shape]
    assert missing == []


@pytest.mark.parametrize("name", ["actnet/rkd_r152_r50_72", "sthv2/rkd_tsm_r50_112", "k400/rkd_slowonly_r50_112",
                                  "k400/rkd_swin_s_112"])  # fmt: skip
def test_one_step_of_each_family_moves_its_student(name):
    """The config's own width, losses, groups, schedule and encoding on one clip of four frames; a few blocks do.
    The whole nets are those of `test_every_net_trains_on_shapes`."""
    torch.manual_seed(0)
    file = ROOT / "configs" / f"{name}.yaml"
    config, net, classes = load(file), complete(file), CLASSES[name.split("/")[0]]
    args = {"depths": [1, 1, 1, 1]} if net.arch == "swin" else {"layers": [1, 1, 1, 1]}
    net = net.model_copy(update={"args": args, "num_frames": 4})
    there = stats_of(ROOT / "configs" / f"{teacher_of(cache_of(config)[1]).output.relative_to('runs')}.yaml")
    grid = (there.grid[0] * net.num_frames // config.model.num_frames, *there.grid[1:])
    settings = cache_of(config)[1].targets.features
    width = settings.dims or there.width
    constants = {"basis": np.eye(there.width, width, dtype=np.float32)} if settings.dims else {}
    student = build_student(build_model(net), config.losses, there.width, constants).train()
    assert student.projector is None
    optimizer = build_optimizer(student, config.optim, config.optim.lr_batch)
    build_schedule(optimizer, config.schedule, steps_per_epoch=1).step_update(config.schedule.epochs // 4)
    batch = Batch(
        clips=torch.randint(0, 256, (1, net.num_frames, 3, config.size, config.size), dtype=torch.uint8),
        labels=torch.tensor([classes - 1]),
        multi_hot=torch.zeros(1, classes),
        usable=torch.ones(1, dtype=torch.bool),
        index=torch.zeros(1, 3, dtype=torch.int64),
        features=torch.randint(-7, 8, (1, *grid, width), dtype=torch.int8),  # int4 codes
    )
    watched = [next(student.model.backbone.parameters()), student.model.head.fc.weight, student.model.head.fc.bias]
    before = [p.detach().clone() for p in watched]
    decoder = TargetDecoder(
        map_shape=(*grid[1:], there.width),
        scale=torch.full((width,), 0.1),
        offset=torch.full((width,), 0.7),
        classifier=(torch.randn(classes, width), torch.zeros(classes)),
    )
    terms = loss_terms(student(batch.clips), batch, config.losses, decoder)
    assert terms.keys() == config.losses.weights().keys() and len(terms) == 2
    loss = sum(config.losses.weights()[key] * value for key, value in terms.items())
    loss.backward()
    if config.optim.clip_grad:
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.optim.clip_grad)
    optimizer.step()
    assert loss.isfinite() and all(p.isfinite().all() for p in student.parameters())
    assert not any(torch.equal(p, old) for p, old in zip(watched, before, strict=True))


def test_what_is_said_of_bases_is_so():
    """A ResKD config shows what is its own."""
    own = yaml.safe_load((ROOT / "configs/actnet/rkd_r152_r50_112.yaml").read_text())
    assert set(own) == {"base", "output", "data", "policy", "losses"}
    assert read_values(ROOT / "configs/actnet/rkd_r152_r50_112.yaml")["data"]["train"] == "data/actnet/train"
