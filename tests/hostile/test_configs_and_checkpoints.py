"""Configs with tags and alias bombs; checkpoints with code, bombs, and descriptions that name other files."""

import itertools
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from cache.errors import ReskdError
from stages.config.yaml_text import parse_yaml
from stages.models.checkpoints import load_model, read_checkpoint
from stages.models.weight_files import read_weight_file
from tests.hostile.attempts import files, little_memory, refused

NAMES = "abcdefghij"


def laughs(form: str) -> str:
    """Ten aliases of ten aliases of ...: 10^9 values in ten lines."""
    lines = ["a: &a " + ("{x: 1}" if form == "merge" else "[lol]")]
    for below, name in itertools.pairwise(NAMES):
        ten = ", ".join([f"*{below}"] * 10)
        keyed = ", ".join(f"k{i}: *{below}" for i in range(10))
        value = {"lists": f"[{ten}]", "objects": f"{{{keyed}}}", "merge": f"{{<<: [{ten}]}}"}[form]
        lines.append(f"{name}: &{name} {value}")
    return "\n".join(lines)


CONFIGS = {
    "call": "size: !!python/object/apply:os.system ['touch RAN']",
    "new object": "size: !!python/object/new:os.system ['touch RAN']",
    "name": "size: !!python/name:os.system",
    "module": "!!python/module:os {}",
    "own tag": "size: !evil x",
    "laughs in lists": laughs("lists"),
    "laughs in objects": laughs("objects"),
    "laughs in merges": laughs("merge"),
    "a known key": laughs("lists") + "\nsize: *j",
    "base": laughs("lists").replace("\nj: ", "\nbase: "),
    "inside itself": "size: &a [*a]",
    "a merge of itself": "optim: &a {<<: *a}",
    "deep": "size: " + "[" * 20_000 + "]" * 20_000,
    "deep by aliases": "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 1000)),
    "digits": "size: " + "1" * 5000,
    "a day that isn't": "size: 2020-99-99",
    "a bool that isn't": "size: !!bool maybe",
    "infinity": "optim: {lr: .inf}",
    "not a number": "optim: {lr: .nan}",
    "an object as a key": "{[1]: 2}",
    "orders": "size: \x1b[2J",
    "base without an end": "base: /dev/zero",
    "a binary": "size: !!binary '!'",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_config_is_refused_and_runs_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    said = refused("train-student", "--config", "config.yaml", "--dry-run")
    assert ("config config.yaml" in said or "config /dev/zero" in said) and len(said) < 5000
    assert "\x1b" not in said and files(tmp_path) == {"config.yaml"}


def test_aliases_of_an_honest_config_are_read():
    assert parse_yaml("a: &a {x: [1, 2]}\nb: {<<: *a, y: *a}") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2], "y": {"x": [1, 2]}},
    }
    with pytest.raises(yaml.YAMLError, match="more than 100000 values"):
        parse_yaml("a: &a [" + ", ".join(["1"] * 1000) + "]\nb: [" + ", ".join(["*a"] * 100) + "]")


class Calls:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def checkpoint(path: Path, changes: dict, tensors: dict | None = None) -> Path:
    """A checkpoint of this program, whose description is changed by "a.b" -> value."""
    card = {"format": 1, "model": {"arch": "tsn", "backbone": "resnet18", "args": {}, "num_classes": 2, "num_frames": 4},
            "classes": ["a", "b"], "size": 16, "render_via": None, "notes": {},
            "eval_policy": {"num_frames": 4, "jitter": False, "crop": "center", "flip": 0.0}}  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split(".")
        part = card
        for parent in parents:
            part = part[parent]
        part[last] = value
    save_file(tensors or {"x": torch.zeros(1)}, path, metadata={"reskd": json.dumps(card)})
    return path


CARDS = {
    "weights of timm from a file": {"model.args": {"checkpoint_path": "evil.pth"}},
    "weights of timm from an address": {"model.args": {"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}},
    "pretrained": {"model.args": {"pretrained": True}},
    "a net of a hub": {"model.backbone": "hf-hub:evil/net"},
    "a net of a folder": {"model.backbone": "local-dir:/tmp"},
    "classes, a text": {"classes": "ab"},
    "classes, numbers": {"classes": [1, 2]},
    "classes, an object": {"classes": {"a": 1}},
    "a classifier of 10^12": {"model.num_classes": 10**12},
    "frames": {"model.num_frames": 0},
    "size, a text": {"size": "16"},
    "size, huge": {"size": 10**9},
    "render_via": {"render_via": -1},
    "notes": {"notes": []},
    "frames of views": {"eval_policy.num_frames": 10**12},
    "a fraction of frames": {"eval_policy.num_frames": 2.5},
    "stride": {"eval_policy.stride": 10**30},
    "clips": {"eval_policy.clips": 10**9},
    "seed": {"eval_policy.seed": "x"},
    "scales": {"eval_policy.scales": ["x"]},
    "policy": {"eval_policy": 3},
    "another key": {"model.run": "touch RAN"},
}


@pytest.mark.parametrize("changes", CARDS.values(), ids=CARDS)
def test_a_hostile_description_in_a_checkpoint_is_refused(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    torch.save(Calls(os.system, "touch RAN"), tmp_path / "evil.pth")
    path = checkpoint(tmp_path / "net.safetensors", changes)
    with little_memory(), pytest.raises(ReskdError, match="net.safetensors|model.args|backbone|view policy|timm"):
        load_model(path)
    assert files(tmp_path) == {"evil.pth", "net.safetensors"}


def test_names_of_weights_and_metadata_of_a_safetensors_are_texts(tmp_path):
    names = ["../../../tmp/x", "/etc/passwd", "__reduce__", "cos\nsystem\n(S'touch RAN'\ntR.", "\x1b[2J"]
    path = checkpoint(tmp_path / "net.safetensors", {}, {name: torch.zeros(1) for name in names})
    assert set(read_checkpoint(path)[0]) == set(names)
    said = refused("evaluate", path, "--data", tmp_path)
    assert "\x1b" not in said and files(tmp_path) == {"net.safetensors"}
    (tmp_path / "deep.safetensors").write_bytes(header({"__metadata__": {"reskd": "[" * 100_000}}))
    with pytest.raises(ReskdError, match="no JSON .*nested too deeply"):
        read_checkpoint(tmp_path / "deep.safetensors")


def header(values: dict, size: int | None = None) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


FILES = {
    "safetensors, a header of 2^60": header({}, 2**60),
    "safetensors, a tensor of 2^50": header({"x": {"dtype": "F32", "shape": [2**48], "data_offsets": [0, 2**50]}}),
    "safetensors, a shape without data": header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}})
    + bytes(4),
    "safetensors, a negative shape": header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
    "safetensors, deep": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_safetensors_that_claims_more_than_it_has_is_refused(tmp_path, content):
    (tmp_path / "net.safetensors").write_bytes(content)
    with little_memory(), pytest.raises(ReskdError, match=r"net\.safetensors"):
        read_weight_file(tmp_path / "net.safetensors")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
        for i in range(20):
            bomb.writestr(f"archive/data/{i + 1}", bytes(1 << 22))
    assert (tmp_path / "net.pth").stat().st_size < 1 << 18
    with little_memory(), pytest.raises(ReskdError, match="claims .* bytes, more than the file has"):
        read_weight_file(tmp_path / "net.pth")


def test_a_tensor_that_repeats_one_byte_is_refused(tmp_path):
    torch.save({"state_dict": {"x": torch.zeros(1).expand(10**12)}}, tmp_path / "net.pth")
    with little_memory(), pytest.raises(ReskdError, match="x claims 1000000000000 numbers, more than the file has"):
        read_weight_file(tmp_path / "net.pth")


def test_code_in_a_checkpoint_is_refused_by_every_command_that_reads_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("net.pth", "net.safetensors"):  # a pickle by another name, too
        torch.save({"state_dict": {"x": torch.zeros(1)}, "meta": Calls(os.system, "touch RAN")}, name)
        said = refused("import-checkpoint", name, "out/net.safetensors", "--set", "model.arch=tsn")
        assert "can't be read" in said or "would look up" in said
        refused("evaluate", name, "--data", tmp_path)
        refused("train-student", "--set", f"init.path={name}", "--set", f"data.train={tmp_path}", "--set", "output=out")
    assert files(tmp_path) == {"net.pth", "net.safetensors"}
