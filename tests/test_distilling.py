"""Students of other widths, and of class maps: through the stages, with what is exported, resumed and refused."""

import dataclasses
import functools
import math
import shutil

import numpy as np
import pytest
import torch

from cache.errors import ReskdError
from cache.reader import CacheReader
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.models.architectures import build_model
from stages.models.checkpoints import load_model, save_model
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.verify_cache import verify_cache
from tests.runs import POLICY, cache_config, cut_at, rows_of, train_config

WIDE_NET = "{channels: [8, 16, 16, 24], layers: [1, 1, 1, 1], output_stride: 8}"
WIDE = f"model.args={WIDE_NET}"
BOTH = [WIDE, "losses.feature_mse=5", "losses.logit_map_kl=0.5", "losses.temperature=2"]
FADING = {"start": 2.0, "end": 0.5, "shape": "cosine", "until": 0.5}
ALL = [*BOTH, f"losses.feature_nmse={FADING}", "losses.feature_cosine=1", "losses.feature_relation=1", "losses.dist=0.5",
       "losses.logit_kl={start: 0, end: 1, shape: linear}", "losses.standardise_logits=true"]  # fmt: skip


@pytest.fixture(scope="module")
def wide(few, few_cached, tmp_path_factory):
    """A student of 24 channels on maps of 16, by every loss that reads a teacher, with averaged weights."""
    output = tmp_path_factory.mktemp("runs") / "wide"
    changes = [f"data.cache={few_cached}", f"data.val={few.val}", *ALL, "ema=0.9", "checkpoint_every=4", "batch_size=8"]
    config = train_config(output, few, *changes, "schedule.epochs=4", "optim.lr=0.02")
    return config, train_student(config)


def test_stage_one_stores_the_teachers_classifier(teacher, cached):
    reader = CacheReader(cached, ("logits", "features"))
    weight, bias = (reader.constants()[name] for name in ("classifier", "classifier_bias"))
    fc = load_model(teacher)[0].head.fc
    assert np.array_equal(weight, fc.weight.detach().numpy().T) and np.array_equal(bias, fc.bias.detach().numpy())
    block = reader.block("000000.tar", 1, 0)
    class_map = block.features.astype(np.float32) @ weight + bias
    assert class_map.shape == (64, 4, 4, 4, 40)
    near = np.abs(class_map.mean((1, 2, 3)) - block.logits)
    assert near.max() <= np.ptp(block.logits, 1).max() / 255 + 1e-3


def test_both_maps_are_learnt_and_the_student_alone_is_exported(wide, few):
    config, result = wide
    rows = rows_of(config.output)
    assert len(rows[0]["terms"]) == 8
    for name in ("feature_mse", "feature_nmse", "feature_cosine", "feature_relation", "dist"):
        assert rows[-1]["terms"][name]["value"] < 0.95 * rows[0]["terms"][name]["value"], name
    state = torch.load(config.output / "last.pt", weights_only=True)
    assert state["adapter"]["weight"].shape == (16, 24) and not any("projector" in name for name in state["model"])
    for name in ("last", "best"):
        model, _ = load_model(config.output / f"{name}.safetensors")  # strict
        assert model.head.fc.in_features == 24 and not any("projector" in key for key in model.state_dict())
    best = EvaluateConfig(checkpoint=config.output / "best.safetensors", data=few.val, loader={"workers": 0})
    assert evaluate(best)["top1"] == pytest.approx(result["best"]["top1"])


def test_a_weight_over_time_is_logged_beside_its_value_and_multiplies_it(wide):
    rows = rows_of(wide[0].output)
    for i, row in enumerate(rows):
        part = i / len(rows)
        fading = 0.5 + 1.5 * (1 + math.cos(math.pi * min(1, part / 0.5))) / 2
        assert row["terms"]["feature_nmse"]["weight"] == pytest.approx(fading)
        assert row["terms"]["logit_kl"]["weight"] == pytest.approx(part)
        assert row["loss"] == pytest.approx(sum(t["weight"] * t["value"] for t in row["terms"].values()), rel=1e-5)


def test_the_projector_is_announced_and_planned(data, cached, tmp_path, capfd):
    config = train_config(tmp_path / "run", data, f"data.cache={cached}", *BOTH)
    assert train_student(config, dry_run=True)["projector"] == "24 -> 16 channels"
    assert "24 channels, the targets' 16: a projector" in " ".join(capfd.readouterr().err.split())
    config = train_config(tmp_path / "run", data, f"data.cache={cached}", *BOTH, "losses.feature_mse=0")
    assert train_student(config, dry_run=True)["projector"] is None


def test_a_run_with_a_projector_resumes_exactly(wide, tmp_path):
    config, _ = wide
    cut = config.model_copy(update={"output": tmp_path / "cut"})
    cut_at(cut, 11)
    train_student(cut, resume=True)
    assert rows_of(cut.output) == rows_of(config.output)
    ours, whole = (torch.load(c.output / "last.pt", weights_only=True) for c in (cut, config))
    for part in ("adapter", "model", "ema"):
        assert all(torch.equal(ours[part][name], whole[part][name]) for name in whole[part])


def test_compiled_and_accumulated_it_is_the_same_run(few, few_cached, tmp_path, monkeypatch):
    # Inductor's C++ takes a minute; what it would compile is traced and run here all the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    changes = [
        f"data.cache={few_cached}",
        f"data.val={few.val}",
        *BOTH,
        "accumulate=2",
        "batch_size=10",  # so no batch of 40 clips for validation is smaller, which would be compiled, too
        "schedule.epochs=1",
        "model.dropout=0",
    ]
    runs, scores = [], []
    for name, more in (("plain", []), ("compiled", ["compile=true"])):
        config = train_config(tmp_path / name, few, *changes, *more)
        scores.append(train_student(config)["best"]["top1"])
        runs.append([row["loss"] for row in rows_of(config.output)])
    assert np.allclose(*runs, rtol=1e-4) and abs(scores[0] - scores[1]) <= 100 / 40  # one clip


def test_class_maps_alone_teach_the_classifier_too(few, teacher, tmp_path, capfd):
    """A teacher that is sure of what it says, whose bias alone a student can learn at once."""
    net, card = load_model(teacher)
    torch.manual_seed(0)
    torch.nn.init.normal_(net.head.fc.bias)
    save_model(tmp_path / "sure.safetensors", net, card)
    cache = cache_config(tmp_path / "t.zarr", few, tmp_path / "sure.safetensors", "views=1")
    cache_teacher(cache)
    changes = [f"data.cache={cache.output}", "losses={cross_entropy: 0, logit_map_kl: 1}", "batch_size=8"]
    config = train_config(tmp_path / "run", few, *changes, "schedule.epochs=6", "optim.lr=0.5")
    train_student(config)
    assert "classifier is not" not in capfd.readouterr().err
    values = [row["terms"]["logit_map_kl"]["value"] for row in rows_of(config.output)]
    assert values[0] == pytest.approx(0.5, abs=0.3) and values[-1] < values[0] / 2
    learnt = load_model(config.output / "last.safetensors")[0].head.fc.bias.detach()
    assert np.corrcoef(learnt, net.head.fc.bias.detach())[0, 1] > 0.7


def test_a_teacher_with_a_norm_before_its_classifier_gives_all_but_class_maps(few, teacher, tmp_path):
    """A linear classifier of its stored map would give other logits than its own, so the cache has none."""
    card = load_model(teacher)[1]
    sizes = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}
    net = card.model.model_copy(update={"arch": "tsn", "backbone": "convnext_atto", "args": sizes, "head_norm": True})
    torch.manual_seed(0)
    model = build_model(net)
    for parameter in (*model.head.norm.parameters(), *model.head.fc.parameters()):
        torch.nn.init.normal_(parameter)
    normed = tmp_path / "normed.safetensors"
    save_model(normed, model, dataclasses.replace(card, model=net, size=64))
    cache = cache_config(tmp_path / "t.zarr", few, normed, "views=1", "targets.features={codec: int8, dims: 8}")
    cache_teacher(cache)
    assert set(CacheReader(cache.output, ("features",)).constants()) == {
        "basis",
        "mean",
        "scale",
        "offset",
        "channel_std",
    }
    assert verify_cache(cache.output, data=few.val, recompute=4, teacher=normed)["problems"] == []
    replayed = [f"data.cache={cache.output}", "losses.feature_mse=1", "losses.logit_kl=1"]
    quick = ["schedule.epochs=1", "model.arch=tsn", f"model.args={WIDE_NET}"]
    train_student(train_config(tmp_path / "run", few, *replayed, *quick))
    online = [f"teacher.checkpoint={normed}", f"policy={POLICY}"]
    for name, changes in (("replayed", replayed), ("online", online)):
        config = train_config(tmp_path / name, few, *changes, *quick, "losses.logit_map_kl=1")
        with pytest.raises(ReskdError, match="this teacher has a norm before its classifier"):
            train_student(config)


def test_gradient_checkpointing_changes_nothing(few, few_cached, tmp_path):
    changes = [f"data.cache={few_cached}", *BOTH, "schedule.epochs=1", "batch_size=8"]
    runs = []
    for name, more in (("plain", []), ("checkpointed", ["grad_checkpointing=true"])):
        config = train_config(tmp_path / name, few, *changes, *more)
        train_student(config)
        runs.append([row["loss"] for row in rows_of(config.output)])
    assert np.allclose(*runs, rtol=1e-4)


def test_refuses_a_cache_whose_classifier_is_lost_before_work(data, cached, tmp_path):
    shutil.copytree(cached, tmp_path / "t.zarr")
    config = train_config(tmp_path / "run", data, f"data.cache={tmp_path / 't.zarr'}", "losses.logit_map_kl=1")
    (tmp_path / "t.zarr" / "classifier" / "c.0.0").unlink()
    with pytest.raises(ReskdError, match=r"classifier/c\.0\.0.*is missing.*cache-teacher again"):
        train_student(config)
    assert not config.output.exists()
