"""A loss, a codec and an architecture are each added in one file: those of the READMEs, appended to a copy of the project."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cache.manifest import Manifest
from cache.reader import CacheReader
from tests.runs import MODEL, POLICY, sets

ROOT = Path(__file__).parents[1]
ARCHITECTURE = '''

def encode_last_frame(backbone, clips):
    """The map of the last frame alone, [B, 1, h, w, D]."""
    return encode_frames(backbone, clips[:, -1:])


ARCHITECTURES["last_frame"] = (build_backbone, encode_last_frame)
'''


def shown(heading: str) -> str:
    """The code below a heading of the losses' README."""
    text = (ROOT / "stages/distill/README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(block.splitlines()) <= 20
    return "\n\n" + block


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy with one thing more in each of three files, and nothing else."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("cache", "stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipeline.py", copy)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for file, code in (
        ("stages/distill/losses.py", shown("How to add a loss")),
        ("cache/codecs.py", shown("How to add a codec")),
        ("stages/models/architectures.py", ARCHITECTURE),
    ):
        with open(copy / file, "a") as f:
            f.write(code)
    return copy


def test_they_work_together(project, data, zygote, tmp_path):
    def run(*arguments: str, expect: int = 0) -> str:
        return zygote.run([*arguments], expect, cwd=project, project=project)

    net = [part for line in MODEL for part in ("--set", line)]
    common = {"model.arch": "last_frame", "data.train": str(data.train), "loader.workers": 0, "schedule.epochs": 1,
              "log_every": 1}  # fmt: skip
    run("train-student", *net, *sets({**common, "output": str(tmp_path / "teacher"), "size": 32, "policy": POLICY}))
    run("cache-teacher", *sets({
        "data": str(data.train), "output": str(tmp_path / "t.zarr"), "views": 1, "policy": POLICY, "loader.workers": 0,
        "teacher.checkpoint": str(tmp_path / "teacher/last.safetensors"), "targets.features": "int6",
    }))  # fmt: skip
    student = {**common, "output": str(tmp_path / "student"), "size": 16, "data.cache": str(tmp_path / "t.zarr")}
    run("train-student", *net, *sets(student | {"losses": {"feature_l1": 2.0, "l1_margin": 0.1}}))

    root = json.loads((tmp_path / "t.zarr/zarr.json").read_text())["attributes"]
    assert root["identity"]["targets"]["features"]["codec"] == "int6"
    assert root["identity"]["targets"]["features"]["grid"][0] == 1  # one frame's map
    rows = [json.loads(line) for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines()]
    assert all(row["terms"]["feature_l1"]["value"] >= 0 for row in rows if row["kind"] == "train")
    assert rows[-1]["terms"]["feature_l1"]["weight"] == 2.0
    # What nobody added is refused, and told what there is.
    assert "feature_l1" in run("train-student", *net, *sets(student | {"losses.feature_l": 1}), expect=1)
    with pytest.raises(ValueError, match="int6"):  # by a program that doesn't have the codec
        CacheReader(tmp_path / "t.zarr", ("features",)).block("000000.tar", 0, 0)
    assert Manifest.from_json(root).identity.targets["features"]["codec"] == "int6"
