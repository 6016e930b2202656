"""Configs: what is unknown or contradictory is refused before any work, with a way out."""

from pathlib import Path

import pytest

from cache.errors import ReskdError
from stages.config.file import load_config, read_values, save_config
from stages.student.config import TrainConfig

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
        (["data.views=2"], r"go with data\.cache"),
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


def write(folder: Path, **files: str) -> Path:
    """YAML files by name; the folder of them."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_is_laid_over_its_base(tmp_path):
    """Mappings key by key, at any depth; a list, a number, or null replaces what was there."""
    write(
        tmp_path,
        below="output: a\ndata: {train: d}\nmodel: {args: {x: 1, y: [1, 2]}}\npolicy: {flip: 0.1, num_frames: 8}\n",
        above="base: below.yaml\noutput: b\nmodel: {args: {y: [3]}}\npolicy: null\noptim: {lr: 0.5}\n",
    )
    config = load_config(TrainConfig, tmp_path / "above.yaml", ["optim.momentum=0"])
    assert (str(config.output), str(config.data.train), config.optim.lr) == ("b", "d", 0.5)
    assert config.model.args == {"x": 1, "y": [3]} and config.policy is None
    assert "base" not in read_values(tmp_path / "above.yaml")


def test_of_several_bases_the_later_wins_and_the_file_over_all(tmp_path):
    write(tmp_path, a="x: 1\ny: 1\nz: 1\n", b="y: 2\nz: 2\n", own="base: [a.yaml, b.yaml]\nz: 3\n")
    assert read_values(tmp_path / "own.yaml") == {"x": 1, "y": 2, "z": 3}
    write(tmp_path, other="base: [b.yaml, a.yaml]\n", none="base: []\nx: 5\n")
    assert read_values(tmp_path / "other.yaml") == {"x": 1, "y": 1, "z": 1}
    assert read_values(tmp_path / "none.yaml") == {"x": 5}


def test_a_base_is_found_beside_the_file_that_names_it_and_may_have_its_own(tmp_path, monkeypatch):
    (tmp_path / "base" / "deep").mkdir(parents=True)
    write(tmp_path / "base" / "deep", root="a: {b: 1, c: 1}\n")
    write(tmp_path / "base", middle="base: deep/root.yaml\na: {c: 2}\n", twin="base: deep/root.yaml\nd: 4\n")
    write(tmp_path, own="base: [base/middle.yaml, base/twin.yaml]\n")
    monkeypatch.chdir(tmp_path / "base")
    assert read_values(tmp_path / "own.yaml") == {"a": {"b": 1, "c": 1}, "d": 4}  # root comes again with the twin


def test_the_files_read_are_not_changed_by_each_other(tmp_path):
    write(tmp_path, root="a: {b: 1}\n", one="base: root.yaml\na: {c: 1}\n", two="base: [one.yaml, root.yaml]\n")
    assert read_values(tmp_path / "two.yaml") == {"a": {"b": 1, "c": 1}}
    assert read_values(tmp_path / "root.yaml") == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "text, match",
    [
        ("base: gone.yaml", r"gone\.yaml: No such file or directory \(base of .*own\.yaml\)"),
        ("base: own.yaml", r"own\.yaml: it is its own base, by way of own\.yaml"),
        ("base: [ring.yaml]", r"it is its own base, by way of own\.yaml -> ring\.yaml"),
        ("base: list.yaml", r"list\.yaml must be a mapping"),
        ("base: 3", r"`base` must be a file or a list of files \(given: 3\)"),
        ("base: [3]", r"`base` must be a file or a list of files \(given: \[3\]\)"),
        ("base:", r"`base` must be a file or a list of files \(given: None\)"),
        ("base: {file: ring.yaml}", "`base` must be a file or a list of files"),
        ("base: typo.yaml", r"own\.yaml:\n  optim\.lrr: unknown key; did you mean 'lr'"),
    ],
)
def test_a_base_that_can_not_be_is_named(tmp_path, text, match):
    write(tmp_path, own=text, ring="base: own.yaml", list="- 1", typo="output: o\ndata: {train: d}\noptim: {lrr: 1}")
    with pytest.raises(ReskdError, match=match):
        load_config(TrainConfig, tmp_path / "own.yaml")


def test_a_saved_config_stands_alone(tmp_path):
    write(tmp_path, base="data: {train: d}\noptim: {lr: 0.25}\n", own="base: base.yaml\noutput: o\n")
    config = load_config(TrainConfig, tmp_path / "own.yaml")
    save_config(config, tmp_path / "saved.yaml")
    (tmp_path / "base.yaml").unlink()
    assert load_config(TrainConfig, tmp_path / "saved.yaml") == config
