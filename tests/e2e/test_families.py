"""A published teacher of each architecture, in mmaction2's layout, taken through the command line on encoded clips."""

import json

import pytest
import torch

from cache.reader import CacheReader
from stages.shards.dataset import open_dataset
from stages.video.decode import decode_frames
from stages.video.render import render
from tests import foreign_files
from tests.runs import command, sets

NETS = {
    "tsn": foreign_files.resnet,
    "tsm": foreign_files.resnet,
    "slowonly": lambda classes: foreign_files.inflated(foreign_files.resnet(classes), own_weights=True),
    "swin": foreign_files.swin,
}


@pytest.mark.parametrize("arch", NETS)
def test_an_imported_teacher_teaches(arch, data, tmp_path):
    torch.manual_seed(0)
    teacher = NETS[arch](classes=40)
    state = {"state_dict": foreign_files.as_mmaction2(teacher, shift=arch == "tsm"), "meta": {"epoch": 50}}
    torch.save(state, tmp_path / "published.pth")
    config = foreign_files.model_config(arch, classes=None).model_dump(mode="json", exclude={"num_classes"})
    command("import-checkpoint", tmp_path / "published.pth", tmp_path / "teacher.safetensors", "--class-order", data.val,
        "--size", 32, *sets({"model": config}))  # fmt: skip

    policy = {"num_frames": 4, "sampling": "segments", "flip": 0.5}
    command("cache-teacher", *sets({"data": str(data.val), "output": str(tmp_path / "t.zarr"), "views": 1,
        "teacher.checkpoint": str(tmp_path / "teacher.safetensors"), "policy": policy, "loader.workers": 0}))  # fmt: skip
    _targets_are_the_original_nets(teacher, arch, data, tmp_path / "t.zarr")

    losses = {"cross_entropy": 1.0, "feature_mse": 1.0, "logit_map_kl": 0.5, "logit_kl": 0.5, "temperature": 2.0}
    command("train-student", *sets({"output": str(tmp_path / "student"), "data.train": str(data.val),
        "data.cache": str(tmp_path / "t.zarr"), "model": config, "size": 16, "losses": losses, "batch_size": 20,
        "schedule.epochs": 1, "loader.workers": 0, "init.path": str(tmp_path / "published.pth")}))  # fmt: skip
    result = json.loads((tmp_path / "student/result.json").read_text())
    assert result["steps"] == 2
    command("evaluate", tmp_path / "student/last.safetensors", "--data", data.val, "--output", tmp_path / "score.json",
        "--set", "loader.workers=0")  # fmt: skip
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["clips"] == 40 and score["views"] == 1 and 0 <= score["map"] <= 100


def _targets_are_the_original_nets(net, arch, data, cache) -> None:
    """The net that was exported, run by its own code on the pictures of the cached views, says what the cache says."""
    train = open_dataset(data.val)
    name = train.shards[0].name
    block = CacheReader(cache, ("logits", "features")).block(name, 0, 0)
    for r in (0, 7):
        row, view = train.rows(name)[r], block.view_of(r)
        pictures, _ = decode_frames(train.read(name, r), view.frames, row.decoder)
        shown = torch.from_numpy(render(pictures, view, 32))[None]
        runner = foreign_files.shifted(net) if arch == "tsm" else net
        logits, features = foreign_files.output(runner, arch, shown)
        spread = float(logits.max() - logits.min())
        assert torch.allclose(torch.tensor(block.logits[r]), logits[0], atol=spread / 255)  # the uint8 code's step
        assert torch.allclose(torch.tensor(block.features[r]).float(), features[0], rtol=2e-3, atol=2e-3)
