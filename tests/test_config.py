"""Configs: what is unknown or contradictory is refused before any work, with a way out."""

from pathlib import Path

import pytest

from cache.errors import ReskdError
from stages.config import CacheConfig, DemoConfig, TrainConfig, load_config

ROOT = Path(__file__).parents[1]
LEAST = ["output=out", "data.train=data"]


def refused(*overrides: str, match: str) -> None:
    with pytest.raises(ReskdError, match=match):
        load_config(TrainConfig, None, [*LEAST, *overrides])


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optim.lrr=1", r"optim\.lrr: unknown key; did you mean 'lr'"),
        ("polcy.seed=1", r"polcy: unknown key; did you mean 'policy'"),
        ("policy.num_frame=4", r"policy\.num_frame: unknown key; did you mean 'num_frames'"),
        ("losses.feature_mes=1", "did you mean 'feature_mse'"),
        ("data.cahce=x", "did you mean 'cache'"),
        ("zzz=1", "zzz: unknown key; known keys: output, data"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, meant):
    refused(override, match=meant)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["losses.feature_mse=1"], r"feature_mse needs targets: set data\.cache"),
        (["losses.logit_kl=1"], "logit_kl needs targets"),
        (["losses.cross_entropy=0"], "every weight is 0"),
        (["data.views=2"], r"goes with data\.cache"),
        (["data.cache=c", "policy.flip=0"], "stored views are replayed: remove `policy`"),
        (["policy.num_frames=4"], r"policy\.num_frames 4 and model\.num_frames 8 must be equal"),
        (["eval_policy.jitter=true"], "must be deterministic"),
        (["schedule.warmup_epochs=50"], "warmup_epochs 50.* must be below epochs 50"),
        (["schedule.milestones=[3]"], "go with `name: step`"),
        (["schedule.name=step", "schedule.milestones=[9, 3]"], "must rise"),
        (["init.source=checkpoint"], "`path` goes with"),
        (["render_via=64"], "render_via 64 must not be below size 112"),
        (["optim.lr=-1"], r"optim\.lr: .*greater than 0 \(given: -1\)"),
        (["optim.lr=.inf"], r"optim\.lr: .*finite"),
        (["policy.crop=middle"], "policy.crop: .*given: 'middle'"),
        (["policy.area=[0.5, 2]", "policy.num_frames=8"], "area = .* out of range"),
        (["optim=3"], "optim"),
        (["optim.lr=1", "optim.lr.x=3"], "is a value and has no keys below it"),
        (["no-equals"], "not of the form key=value"),
    ],
)
def test_contradictions_are_refused(overrides, match):
    refused(*overrides, match=match)


def test_files(tmp_path):
    with pytest.raises(ReskdError, match=r"nowhere\.yaml: No such file"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ReskdError, match=r"list\.yaml must be a mapping"):
        load_config(TrainConfig, tmp_path / "list.yaml")
    (tmp_path / "video.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ReskdError, match=r"video\.yaml is not YAML"):
        load_config(TrainConfig, tmp_path / "video.yaml")
    with pytest.raises(ReskdError, match="output: missing"):
        load_config(TrainConfig, None, ["data.train=x"])


def test_overrides_win_and_the_last_one_most(tmp_path):
    (tmp_path / "a.yaml").write_text("output: out\ndata: {train: d}\noptim: {lr: 1.0, momentum: 0.5}\n")
    config = load_config(TrainConfig, tmp_path / "a.yaml", ["optim.lr=2", "optim.lr=3"])
    assert config.optim.lr == 3 and config.optim.momentum == 0.5


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_config_is_valid_and_headed_by_its_command(file):
    model = {"cache": CacheConfig, "demo": DemoConfig}.get(file.stem, TrainConfig)
    load_config(model, file)
    command = "demo" if model is DemoConfig else "cache-teacher" if model is CacheConfig else "train-student"
    assert f"pipeline.py {command}" in file.read_text().split("\n", 2)[1]
