"""Teachers of other families than their students, through the command line on encoded clips: a video classifier and an
encoder of images of transformers, and a video network of torchvision."""

import json

import pytest
import torch
from torchvision.models import video

from cache.errors import ReskdError
from cache.reader import CacheReader
from stages.models.config import ModelConfig
from stages.shards.dataset import open_dataset
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from stages.video.decode import decode_frames
from stages.video.render import render
from tests.models.test_transformers import folder_of, library_net, pixels
from tests.runs import NET, cache_config, command, sets, train_config

POLICY = {"num_frames": 4, "sampling": "segments", "flip": 0.5}
STUDENT = {"arch": "tsn", "backbone": "resnet18", "args": NET, "num_frames": 4}


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A VideoMAE of the data's classes as the library has it, and its file as one of ours: two times of four frames."""
    root = tmp_path_factory.mktemp("videomae")
    classes = open_dataset(data.val).classes
    net = library_net("videomae", id2label=dict(enumerate(classes)))
    command("import-checkpoint", folder_of(net, root / "net"), root / "teacher.safetensors", "--class-order", data.val)
    return net, root / "teacher.safetensors"


def cache(teacher, data, output, *options) -> None:
    command("cache-teacher", *sets({"data": str(data.val), "output": str(output), "views": 1, "policy": POLICY,
        "teacher.checkpoint": str(teacher), "loader.workers": 0}), *options)  # fmt: skip


def student(data, output, losses, **changes) -> list[str]:
    return sets({"output": str(output), "data.train": str(data.val), "model": STUDENT, "size": 16, "losses": losses,
        "batch_size": 20, "schedule.epochs": 1, "loader.workers": 0, **changes})  # fmt: skip


def test_a_video_classifier_of_transformers_teaches_a_tsn(teacher, data, tmp_path):
    net, file = teacher
    cache(file, data, tmp_path / "t.zarr")
    train = open_dataset(data.val)
    name = train.shards[0].name
    block = CacheReader(tmp_path / "t.zarr", ("logits", "features")).block(name, 0, 0)
    row, view = train.rows(name)[3], block.view_of(3)
    pictures, _ = decode_frames(train.read(name, 3), view.frames, row.decoder)
    with torch.no_grad():
        inputs = pixels(torch.from_numpy(render(pictures, view, 32))[None])
        logits, tokens = net(inputs).logits[0], net.videomae(inputs).last_hidden_state
    assert torch.allclose(torch.tensor(block.logits[3]), logits, atol=float(logits.max() - logits.min()) / 255)
    stored = torch.tensor(block.features[3]).float()
    torch.testing.assert_close(stored, tokens.unflatten(1, (2, 4, 4))[0], rtol=2e-3, atol=2e-3)

    losses = {"cross_entropy": 1.0, "feature_mse": 1.0, "logit_kl": 0.5}
    said = command("train-student", *student(data, tmp_path / "s", losses, **{"data.cache": str(tmp_path / "t.zarr")}))
    assert "the student's map has 4 times, the teacher's 2: the student's are averaged" in " ".join(said.split())
    assert "a projector" in said
    command("evaluate", tmp_path / "s/last.safetensors", "--data", data.val, "--output", tmp_path / "score.json",
        "--set", "loader.workers=0")  # fmt: skip
    assert json.loads((tmp_path / "score.json").read_text())["clips"] == 40
    with pytest.raises(ReskdError, match="can't take 4 frames of 48 px"):
        cache_teacher(cache_config(tmp_path / "x.zarr", data, file, "teacher.size=48", "targets.features=null"))
    with pytest.raises(ReskdError, match="or a pooling of its own"):
        changes = [f"data.cache={tmp_path / 't.zarr'}", "losses.logit_map_kl=1", f"model={json.dumps(STUDENT)}"]
        train_student(train_config(tmp_path / "x", data, f"data.train={data.val}", *changes))
    assert not (tmp_path / "x").exists()


def test_it_teaches_a_cohort_in_the_loop_a_vit_among_it(teacher, data, tmp_path):
    vit = {"arch": "tsn", "backbone": "vit_tiny_patch16_224", "num_frames": 4,
           "args": {"depth": 1, "embed_dim": 16, "num_heads": 1, "patch_size": 8}}  # fmt: skip
    config = {"output": str(tmp_path / "cohort"), "data": {"train": str(data.val)}, "size": 16, "batch_size": 20,
              "teacher": {"checkpoint": str(teacher[1])}, "schedule": {"epochs": 1}, "loader": {"workers": 0},
              "losses": {"feature_mse": 1.0}, "model": {"num_frames": 4},
              "students": {"cnn": {"model": STUDENT}, "vit": {"model": vit}}}  # fmt: skip
    (tmp_path / "cohort.yaml").write_text(json.dumps(config))
    command("train-student", "--config", tmp_path / "cohort.yaml")
    for name in ("cnn", "vit"):
        assert json.loads((tmp_path / "cohort" / name / "result.json").read_text())["steps"] == 2
    with pytest.raises(ReskdError, match="or a pooling of its own"):
        online = [f"teacher.checkpoint={teacher[1]}", "losses.logit_map_kl=1", f"model={json.dumps(STUDENT)}"]
        train_student(train_config(tmp_path / "x", data, *online))


def test_an_encoder_of_images_gives_features_to_learn_from(data, tmp_path):
    folder = folder_of(library_net("dinov2", "encoder"), tmp_path / "net")
    command("import-checkpoint", folder, tmp_path / "dino.safetensors", "--class-order", data.val, "--head", "drop",
        "--set", "model.num_frames=4")  # fmt: skip
    cache(tmp_path / "dino.safetensors", data, tmp_path / "t.zarr", "--set", "targets.features={codec: int8, dims: 8}")
    command("train-student", *student(data, tmp_path / "s", {"cross_entropy": 1.0, "feature_mse": 1.0},
        **{"data.cache": str(tmp_path / "t.zarr")}))  # fmt: skip
    assert json.loads((tmp_path / "s/result.json").read_text())["steps"] == 2


def test_a_video_network_of_torchvision_teaches_a_tsn_with_maps_of_its_own_times(data, tmp_path):
    torch.manual_seed(0)
    torch.save(video.mc3_18(num_classes=40).state_dict(), tmp_path / "mc3.pth")
    config = ModelConfig(arch="torchvision_video", backbone="mc3_18", num_frames=4).model_dump(mode="json")
    command("import-checkpoint", tmp_path / "mc3.pth", tmp_path / "mc3.safetensors", "--class-order", data.val, "--size",
        16, *sets({"model": config}))  # fmt: skip
    cache(tmp_path / "mc3.safetensors", data, tmp_path / "t.zarr", "--set", "targets.features={time: 2}")
    losses = {"cross_entropy": 1.0, "feature_mse": 1.0, "logit_map_kl": 0.5}
    said = command("train-student", *student(data, tmp_path / "s", losses, **{"data.cache": str(tmp_path / "t.zarr")}))
    assert "the student's map has 4 times, the teacher's 2" in " ".join(said.split())
