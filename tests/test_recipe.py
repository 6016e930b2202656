"""What the losses need of a cache: the deviations of its channels, whole maps, more than one position; and maps alone."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cache.codecs import from_stored
from cache.errors import ReskdError
from cache.group import load_manifest, write_attributes
from cache.reader import CacheReader
from stages.models.checkpoints import load_model, save_model
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.inspect_cache import inspect_cache
from stages.teacher.verify_cache import verify_cache
from tests.runs import POLICY, cache_config, rows_of, train_config, tree

TURNED = "{codec: int4, dims: 12, rotate: hadamard}"


@pytest.fixture(scope="module")
def alone(few, teacher, tmp_path_factory):
    """Maps alone, in a turned basis, of a teacher whose two classes are not those of the data; its config."""
    folder = tmp_path_factory.mktemp("alone")
    net, card = load_model(teacher)
    net.head.fc.weight.data, net.head.fc.bias.data = net.head.fc.weight.data[:2], net.head.fc.bias.data[:2]
    card = replace(card, classes=("cat", "dog"), model=card.model.model_copy(update={"num_classes": 2}))
    save_model(folder / "other.safetensors", net, card)
    changes = ["targets.logits=null", f"targets.features={TURNED}"]
    config = cache_config(folder / "t.zarr", few, folder / "other.safetensors", *changes)
    cache_teacher(config)
    return config


def test_the_deviations_are_those_of_the_stored_maps(cached, alone):
    for path in (cached, alone.output):
        reader = CacheReader(path, ("features",))
        constants = reader.constants()
        blocks = [(e.name, i) for e in reader.manifest.identity.shards for i in range(-(-e.clips // 64))]
        maps = np.concatenate([from_stored(reader.block(name, 0, i).features, constants) for name, i in blocks])
        deviations = maps.reshape(-1, maps.shape[-1]).astype(np.float64).std(0)
        assert np.allclose(constants["channel_std"], deviations, rtol=1e-4)


def test_a_cache_of_an_older_version_is_refused_by_name_and_gets_its_deviations_by_the_command(
    data, teacher, cached, tmp_path
):
    path = tmp_path / "old.zarr"
    shutil.copytree(cached, path)
    whole = tree(path)
    manifest = load_manifest(path)
    listed = {file: digest for file, digest in manifest.constants.items() if not file.startswith("channel_std")}
    shutil.rmtree(path / "channel_std")
    write_attributes(path, replace(manifest, constants=listed).to_json())
    config = train_config(tmp_path / "run", data, f"data.cache={path}", "losses.feature_nmse=1")
    with pytest.raises(
        ReskdError, match=r"losses.feature_nmse needs the deviations .*run cache-teacher with the cache's"
    ):
        train_student(config, dry_run=True)
    train_student(train_config(tmp_path / "run", data, f"data.cache={path}", "losses.feature_mse=1"), dry_run=True)
    assert cache_teacher(cache_config(path, data, teacher))["clip_views"] == 0
    assert tree(path) == whole
    train_student(config, dry_run=True)


def test_a_cache_that_grows_keeps_its_deviations(few, teacher, tmp_path):
    path = tmp_path / "t.zarr"
    cache_teacher(cache_config(path, few, teacher, "views=1"))
    before = load_manifest(path).constants
    cache_teacher(cache_config(path, few, teacher, "views=2", "targets.logits=uint8"))
    assert load_manifest(path).constants == before and "channel_std/zarr.json" in before


def test_maps_alone_teach_a_student_and_everything_says_what_they_are(few, alone, tmp_path, capfd):
    stored = load_manifest(alone.output)
    assert set(stored.identity.targets) == {"features"}
    assert not any(file.startswith("classifier") for file in stored.constants)
    problems = verify_cache(alone.output, data=few.train, recompute=4, teacher=alone.teacher.checkpoint)
    assert problems["problems"] == [] and problems["verified"] < 0.01
    capfd.readouterr()
    clip = stored.identity.shards and CacheReader(alone.output, ()).block("000000.tar", 0, 0).keys[0]
    shown = inspect_cache(alone.output, data=few.train, clip=clip, png=tmp_path / "clip.png")
    assert shown["top1"] is None and shown["clip"]["views"][0]["top"] == []
    assert "maps alone" in capfd.readouterr().out
    changes = [f"data.cache={alone.output}", "losses.feature_nmse=1", "losses.projector=linear"]
    train_student(train_config(tmp_path / "run", few, *changes, "batch_size=8", "optim.lr=0.02", "schedule.epochs=3"))
    values = [row["terms"]["feature_nmse"]["value"] for row in rows_of(tmp_path / "run")]
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("loss, message", [
    ("logit_kl", r"stores \['features'\], but the losses need 'logits'|holds no logits"),
    ("dist", r"stores \['features'\], but the losses need 'logits'|holds no logits"),
    ("logit_map_kl", "logit_map_kl needs the teacher's classifier, and this cache has maps alone"),
])  # fmt: skip
def test_losses_of_the_classifier_are_refused_by_a_cache_of_maps_alone(few, alone, tmp_path, loss, message):
    with pytest.raises(ReskdError, match=message):
        train_student(
            train_config(tmp_path / "run", few, f"data.cache={alone.output}", f"losses.{loss}=1"), dry_run=True
        )


def test_the_planner_plans_maps_alone(few, alone, tmp_path):
    config = cache_config(tmp_path / "t.zarr", few, alone.teacher.checkpoint, "targets.logits=null", "views=1")
    plan = cache_teacher(config, dry_run=True, probe=8)
    turned = [row for row in plan["encodings"] if "turned" in row["name"]]
    assert not turned  # of 2 of its 16 channels
    assert "logits only" not in [row["name"] for row in plan["encodings"]]
    assert [row["name"] for row in plan["encodings"] if row["configured"]] == ["float16"]


@pytest.fixture(scope="module")
def reduced(few, teacher, tmp_path_factory):
    """Maps that are reduced to the grid of a student."""
    path = tmp_path_factory.mktemp("reduced") / "t.zarr"
    cache_teacher(cache_config(path, few, teacher, "targets.features={grid: [2, 2]}", "views=1"))
    return path


@pytest.mark.parametrize("loss", ["feature_cosine", "feature_relation", "feature_nmse"])
def test_losses_of_whole_maps_are_refused_by_a_reduced_grid(few, reduced, tmp_path, loss):
    config = train_config(tmp_path / "run", few, f"data.cache={reduced}", f"losses.{loss}=1")
    with pytest.raises(ReskdError, match=rf"losses.{loss}: .*keeps the gradient of feature_mse alone"):
        train_student(config, dry_run=True)


def test_a_relation_over_one_position_is_refused(few, teacher, tmp_path):
    cache = cache_config(tmp_path / "t.zarr", few, teacher, "targets.features={time: 1}", "views=1")
    cache_teacher(cache)
    changes = [f"data.cache={cache.output}", "losses.feature_relation=1", "size=8"]  # a map of 1x1
    with pytest.raises(
        ReskdError, match=r"feature_relation compares the positions .*one position in common.*\[4, 1, 1\]"
    ):
        train_student(train_config(tmp_path / "run", few, *changes), dry_run=True)


def test_a_relation_over_one_position_is_refused_with_a_teacher_in_the_loop_too(few, teacher, tmp_path):
    net, card = load_model(teacher)
    one = replace(card, model=card.model.model_copy(update={"num_frames": 1}))
    save_model(tmp_path / "one.safetensors", net, one)
    policy = {**POLICY, "num_frames": 1}
    changes = [f"teacher.checkpoint={tmp_path / 'one.safetensors'}", "model.num_frames=1", f"policy={policy}", "size=8"]
    with pytest.raises(ReskdError, match=r"feature_relation compares the positions .*student \[T, h, w\] \[1, 1, 1\]"):
        train_student(train_config(tmp_path / "run", few, *changes, "losses.feature_relation=1"), dry_run=True)


def test_a_teacher_of_other_classes_teaches_by_its_maps_in_the_loop(few, alone, tmp_path):
    changes = [f"teacher.checkpoint={alone.teacher.checkpoint}", f"policy={POLICY}", "losses.feature_mse=1"]
    train_student(train_config(tmp_path / "run", few, *changes), dry_run=True)
    with pytest.raises(ReskdError, match="other classes|classes"):
        train_student(train_config(tmp_path / "run", few, *changes, "losses.logit_kl=1"), dry_run=True)


def test_normalisation_with_a_teacher_in_the_loop_is_refused(few, teacher, tmp_path):
    changes = [f"teacher.checkpoint={teacher}", f"policy={POLICY}", "losses.feature_nmse=1"]
    with pytest.raises(ReskdError, match=r"losses.feature_nmse needs the deviations .*a cache alone has them"):
        train_student(train_config(tmp_path / "run", few, *changes), dry_run=True)


def test_nothing_to_store_is_refused(few, teacher, tmp_path):
    with pytest.raises(ReskdError, match="logits and features are both null"):
        cache_config(tmp_path / "t.zarr", few, teacher, "targets.logits=null", "targets.features=null")


def test_a_cache_in_a_turned_basis_is_another_one_than_without_the_turn(few, alone):
    plain = alone.model_copy(update={"targets": alone.targets.model_copy(update={
        "features": alone.targets.features.model_copy(update={"rotate": None})})})  # fmt: skip
    with pytest.raises(ReskdError, match=r"made by another run(.|\n)*rotate"):
        cache_teacher(plain)
    settings = json.loads((alone.output / "zarr.json").read_text())["attributes"]["identity"]["targets"]["features"]
    assert settings["sample"]["rotate"] == "hadamard" and re.fullmatch("[0-9a-f]{64}", settings["constants_sha256"])
